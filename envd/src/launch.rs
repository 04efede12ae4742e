//! From a request to everything `spawn` needs: each field checked, nothing started yet.

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use wrenn_proto::envd::v1::{EnvVar, PtySize, StartRequest};

use crate::accounts::{self, Account, AccountError};
use crate::spawn::Credentials;

/// What every process finds its programs on unless it is told otherwise.
const STANDARD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The longest command line that is remembered for display, in bytes.
const COMMAND_SHOWN: usize = 4096;

/// A request that can be started.
#[derive(Debug)]
pub struct Launch {
    pub path: CString,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    pub cwd: CString,
    /// Absent: envd's own.
    pub credentials: Option<Credentials>,
    /// As it is shown: the shell line, or the arguments joined by blanks.
    pub command: String,
    pub user: String,
    pub shown_cwd: String,
}

/// A field of a request that cannot be used, by its name in the schema.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    pub field: &'static str,
    pub message: String,
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("cannot look up the user")]
    Accounts(#[source] AccountError),
}

/// What the machine's configuration adds to a request.
#[derive(Debug, Default, Clone)]
pub struct Surroundings {
    /// Before the request's own variables.
    pub env: Vec<EnvVar>,
    /// For requests that name no user.
    pub default_user: String,
}

fn invalid(field: &'static str, message: impl Into<String>) -> Invalid {
    Invalid { field, message: message.into() }
}

impl Launch {
    /// Checks a request against the users in `etc` and the file system as it is.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn prepare(
        request: &StartRequest,
        surroundings: &Surroundings,
        etc: &Path,
    ) -> Result<Self, LaunchError> {
        let Some(program) = request.argv.first().filter(|it| !it.is_empty()) else {
            return Err(invalid("argv", "no program given").into());
        };
        let account = find_user(&request.user, surroundings, etc)?;
        let cwd = working_directory(&request.cwd, &account)?;
        let env = environment(request, surroundings, &account)?;
        let search = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
        let path = resolve(program, search, &cwd)?;

        let c_string =
            |field, text: String| CString::new(text).map_err(|_| invalid(field, "contains a null character"));
        Ok(Self {
            path: c_string("argv", path)?,
            argv: request.argv.iter().map(|it| c_string("argv", it.clone())).collect::<Result<_, _>>()?,
            env: env
                .into_iter()
                .map(|(name, value)| c_string("env", format!("{name}={value}")))
                .collect::<Result<_, _>>()?,
            cwd: c_string("cwd", cwd.clone())?,
            credentials: user_credentials(&account)?,
            command: shown_command(&request.argv),
            user: account.name,
            shown_cwd: cwd,
        })
    }
}

/// Checks the size of a terminal.
///
/// # Errors
/// A side is 0 or does not fit the kernel's 16 bits.
pub fn window_size(size: PtySize, field: &'static str) -> Result<nix::pty::Winsize, Invalid> {
    let side = |cells: u32| u16::try_from(cells).ok().filter(|&it| it > 0);
    match (side(size.columns), side(size.rows)) {
        (Some(columns), Some(rows)) => {
            Ok(nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
        }
        _ => Err(invalid(field, format!("a terminal of {} by {} is not possible", size.columns, size.rows))),
    }
}

/// Checks the names and values of variables.
///
/// # Errors
/// A name is empty or contains `=`, or either contains a null character.
pub fn check_env(env: &[EnvVar], field: &'static str) -> Result<(), Invalid> {
    for EnvVar { name, value } in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(invalid(field, format!("`{}` cannot name a variable", name.escape_default())));
        }
        if value.contains('\0') {
            return Err(invalid(field, format!("the value of `{name}` contains a null character")));
        }
    }
    Ok(())
}

/// The account of the user that a request names, or of the configured default, or root's.
///
/// # Errors
/// The name is unknown, or the users cannot be read.
pub fn find_user(name: &str, surroundings: &Surroundings, etc: &Path) -> Result<Account, LaunchError> {
    let name = [name, &surroundings.default_user].into_iter().find(|it| !it.is_empty()).unwrap_or("root");
    match accounts::find(etc, name) {
        Ok(account) => Ok(account),
        Err(error @ AccountError::Unknown(_)) => Err(invalid("user", error.to_string()).into()),
        Err(error) => Err(LaunchError::Accounts(error)),
    }
}

/// What a thread or process becomes to act as this account; nothing if envd is that user.
///
/// # Errors
/// Only root can become somebody; another user can still do what is its own.
pub fn user_credentials(account: &Account) -> Result<Option<Credentials>, Invalid> {
    let own = nix::unistd::geteuid();
    if own.is_root() {
        Ok(Some(account.credentials.clone()))
    } else if own.as_raw() == account.credentials.uid {
        Ok(None)
    } else {
        Err(invalid("user", format!("envd runs as user {own} and cannot become `{}`", account.name)))
    }
}

fn working_directory(asked: &str, account: &Account) -> Result<String, Invalid> {
    if asked.is_empty() {
        // Some users have no home that exists; they can still run something.
        let home = if Path::new(&account.home).is_dir() { account.home.as_str() } else { "/" };
        return Ok(home.to_owned());
    }
    let path = PathBuf::from(&account.home).join(asked);
    let shown = path.to_string_lossy().into_owned();
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(shown),
        Ok(_) => Err(invalid("cwd", format!("`{shown}` is not a directory"))),
        Err(error) => Err(invalid("cwd", format!("cannot use directory `{shown}`: {error}"))),
    }
}

/// In the order in which a later one wins.
fn environment(
    request: &StartRequest,
    surroundings: &Surroundings,
    account: &Account,
) -> Result<Vec<(String, String)>, Invalid> {
    check_env(&request.env, "env")?;
    let own = [
        ("PATH", STANDARD_PATH),
        ("HOME", &account.home),
        ("USER", &account.name),
        ("LOGNAME", &account.name),
        ("SHELL", &account.shell),
    ];
    let terminal = request.pty.map(|_| ("TERM", "xterm-256color"));
    let given = surroundings.env.iter().chain(&request.env);
    let given = given.map(|it| (it.name.as_str(), it.value.as_str()));
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in own.into_iter().chain(terminal).chain(given) {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => env.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(env)
}

/// Finds the program as `execvp` would, except that a missing one is an error before anything starts.
fn resolve(program: &str, search: &str, cwd: &str) -> Result<String, Invalid> {
    if program.contains('/') {
        let metadata = Path::new(cwd)
            .join(program)
            .metadata()
            .map_err(|error| invalid("argv", format!("cannot run `{program}`: {error}")))?;
        if metadata.is_dir() {
            return Err(invalid("argv", format!("`{program}` is a directory")));
        }
        return Ok(program.to_owned());
    }
    let mut found = None;
    for directory in search.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{directory}/{program}");
        let Ok(metadata) = Path::new(cwd).join(&candidate).metadata() else { continue };
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            return Ok(candidate);
        }
        found = Some(candidate);
    }
    Err(invalid(
        "argv",
        match found {
            Some(path) => format!("`{path}` is not executable"),
            None => format!("no program `{program}` on PATH ({search})"),
        },
    ))
}

fn shown_command(argv: &[String]) -> String {
    let mut command = match argv {
        [shell, flag, line] if shell == "/bin/sh" && flag == "-c" => line.clone(),
        _ => argv.join(" "),
    };
    if command.len() > COMMAND_SHOWN {
        command.truncate(command.floor_char_boundary(COMMAND_SHOWN));
        command.push('…');
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn var(name: &str, value: &str) -> EnvVar {
        EnvVar { name: name.into(), value: value.into() }
    }

    fn request(argv: &[&str]) -> StartRequest {
        StartRequest { argv: argv.iter().map(ToString::to_string).collect(), ..Default::default() }
    }

    fn field_of(request: &StartRequest) -> &'static str {
        match Launch::prepare(request, &Surroundings::default(), Path::new("/etc")) {
            Err(LaunchError::Invalid(Invalid { field, .. })) => field,
            other => panic!("expected an invalid field, got {other:?}"),
        }
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        assert_eq!(field_of(&request(&[])), "argv");
        assert_eq!(field_of(&request(&[""])), "argv");
        assert_eq!(field_of(&request(&["no-such-program"])), "argv");
        assert_eq!(field_of(&request(&["/etc"])), "argv");
        assert_eq!(field_of(&request(&["true", "a\0b"])), "argv");
        assert_eq!(field_of(&StartRequest { cwd: "/nowhere".into(), ..request(&["true"]) }), "cwd");
        assert_eq!(field_of(&StartRequest { cwd: "/etc/passwd".into(), ..request(&["true"]) }), "cwd");
        assert_eq!(field_of(&StartRequest { user: "no-such-user".into(), ..request(&["true"]) }), "user");
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "\0")] {
            let env = vec![var(name, value)];
            assert_eq!(field_of(&StartRequest { env, ..request(&["true"]) }), "env");
        }
    }

    #[test]
    fn later_variables_win() {
        let surroundings = Surroundings { env: vec![var("A", "1"), var("B", "1")], ..Default::default() };
        let request = StartRequest { env: vec![var("B", "2"), var("HOME", "/x")], ..request(&["true"]) };
        let launch = Launch::prepare(&request, &surroundings, Path::new("/etc")).expect("launch");
        let env: Vec<_> = launch.env.iter().map(|it| it.to_string_lossy()).collect();
        let path = format!("PATH={STANDARD_PATH}");
        for expected in [path.as_str(), "A=1", "B=2", "HOME=/x", "USER=root"] {
            assert!(env.iter().any(|it| it == expected), "{expected} in {env:?}");
        }
        assert_eq!(env.iter().filter(|it| it.starts_with("B=")).count(), 1);
    }

    #[test]
    fn the_request_s_own_path_is_searched() {
        let bin = tempfile::tempdir().expect("a directory");
        let tool = bin.path().join("tool");
        std::fs::write(&tool, "").expect("tool");
        let search = vec![var("PATH", &format!("/nowhere:{}", bin.path().display()))];
        let asked = StartRequest { env: search, ..request(&["tool"]) };
        assert_eq!(field_of(&asked), "argv");
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let launch =
            Launch::prepare(&asked, &Surroundings::default(), Path::new("/etc")).expect("now executable");
        assert_eq!(launch.path.to_str().ok(), tool.to_str());
    }

    #[test]
    fn commands_are_shown_as_given() {
        let shown = |argv: &[&str]| shown_command(&request(argv).argv);
        assert_eq!(shown(&["/bin/sh", "-c", "echo a | wc"]), "echo a | wc");
        assert_eq!(shown(&["/bin/sh", "-c", "echo", "x"]), "/bin/sh -c echo x");
        assert_eq!(shown(&["ls", "-l"]), "ls -l");
        assert!(shown(&[&"é".repeat(COMMAND_SHOWN)]).len() <= COMMAND_SHOWN + '…'.len_utf8());
    }

    #[test]
    fn sizes_of_terminals() {
        assert!(window_size(PtySize { columns: 80, rows: 24 }, "pty").is_ok());
        for (columns, rows) in [(0, 24), (80, 0), (65536, 24)] {
            assert!(window_size(PtySize { columns, rows }, "pty").is_err());
        }
    }
}
