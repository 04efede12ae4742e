//! `wrenn-rootfs`: makes what a capsule starts from, a guest kernel and disk images.

mod digest;
mod elf;
mod error;
mod guest;
mod image;
mod kernel;
mod layout;
mod list;
mod manifest;
mod progress;
mod publish;
mod test_host;
mod tool;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{
    image::recipe::Template,
    layout::{Layout, Lock},
};

/// Makes guest kernels and disk images for Wrenn. Every command does only what is not done yet.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where everything is kept.
    #[arg(long, env = "WRENN_DIR", default_value = "/var/lib/wrenn", global = true)]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Gets the guest kernel from the distribution's package and makes its initramfs.
    Kernel {
        /// A kernel package to take instead of the distribution's newest.
        #[arg(long, value_name = "DEB")]
        from: Option<PathBuf>,
        /// The guest's init, a static binary [default: the one built with this program].
        #[arg(long, value_name = "PATH")]
        init: Option<PathBuf>,
    },
    /// Makes a disk image of a built-in template.
    Build {
        /// Which one.
        #[arg(value_parser = Template::named)]
        template: &'static Template,
        /// The guest daemon, a static binary [default: the one built with this program].
        #[arg(long, value_name = "PATH")]
        envd: Option<PathBuf>,
        /// The guest's init, a static binary [default: the one built with this program].
        #[arg(long, value_name = "PATH")]
        init: Option<PathBuf>,
        /// Install the packages anew, in today's versions.
        #[arg(long)]
        refresh: bool,
    },
    /// Makes the system of a virtual machine in which hosts are tested: kernel, initramfs and disk image.
    TestHost {
        /// The guest's init, a static binary [default: the one built with this program].
        #[arg(long, value_name = "PATH")]
        init: Option<PathBuf>,
        /// Install the packages anew, in today's versions.
        #[arg(long)]
        refresh: bool,
    },
    /// Lists the kernels and images there are.
    List,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("wrenn-rootfs: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let Arguments { dir, command } = Arguments::parse();
    let layout = Layout::new(&dir).with_context(|| format!("cannot use {} as WRENN_DIR", dir.display()))?;
    match command {
        Command::Kernel { from, init } => {
            let _lock = Lock::take(&layout)?;
            let made = kernel::make(&layout, from.as_deref(), &guest::init(init)?)?;
            println!("{}", made.display());
        }
        Command::Build { template, envd, init, refresh } => {
            let _lock = Lock::take(&layout)?;
            let programs = image::Programs { envd: guest::envd(envd)?, init: guest::init(init)? };
            let made = image::build(&layout, template, &programs, refresh)?;
            println!("{}", made.display());
        }
        Command::TestHost { init, refresh } => {
            let _lock = Lock::take(&layout)?;
            let made = test_host::make(&layout, &guest::init(init)?, refresh)?;
            println!("{}", made.display());
        }
        Command::List => print!("{}", list::list(&layout)?),
    }
    Ok(())
}
