//! Which modules the initramfs needs, and in which order they load.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    elf::Elf,
    error::{At, Error, Result},
    tool::Tool,
};

/// An uncompressed module, ready to load.
pub struct Module {
    pub file_name: String,
    pub content: Vec<u8>,
}

/// The `wanted` modules and all that they need from a `lib/modules/<release>`, each after what it needs.
///
/// What a module needs is read from the module itself: a package that was never installed has no `modules.dep`.
pub fn collect(tree: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(&tree.join("kernel"), &mut files)?;
    let builtin = tree.join("modules.builtin");
    let builtin = fs::read_to_string(&builtin).at("read", &builtin)?;
    let is_builtin =
        |name: &str| builtin.lines().any(|line| module_name(Path::new(line)).as_deref() == Some(name));

    let mut modules = BTreeMap::new();
    let mut depends = BTreeMap::new();
    let mut wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    wanted.retain(|name| !is_builtin(name));
    let mut open = wanted.clone();
    while let Some(name) = open.pop() {
        if depends.contains_key(&name) {
            continue;
        }
        let path = files.get(&name).ok_or_else(|| Error::NoModule { module: name.clone() })?;
        let content = read_module(path)?;
        let needs = needs(&content).ok_or_else(|| Error::NotElf { path: path.clone() })?;
        open.extend(needs.iter().cloned());
        modules.insert(name.clone(), Module { file_name: format!("{name}.ko"), content });
        depends.insert(name, needs);
    }
    Ok(load_order(&wanted, &depends)?.iter().filter_map(|name| modules.remove(name)).collect())
}

/// Depth first, so that every module comes after what it needs.
fn load_order(wanted: &[String], depends: &BTreeMap<String, Vec<String>>) -> Result<Vec<String>> {
    fn visit(
        name: &str,
        depends: &BTreeMap<String, Vec<String>>,
        path: &mut Vec<String>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        if order.iter().any(|done| done == name) {
            return Ok(());
        }
        if path.iter().any(|above| above == name) {
            return Err(Error::ModuleCycle { module: name.to_owned() });
        }
        let needs = depends.get(name).ok_or_else(|| Error::NoModule { module: name.to_owned() })?;
        path.push(name.to_owned());
        for need in needs {
            visit(need, depends, path, order)?;
        }
        path.pop();
        order.push(name.to_owned());
        Ok(())
    }
    let mut order = Vec::new();
    for name in wanted {
        visit(name, depends, &mut Vec::new(), &mut order)?;
    }
    Ok(order)
}

/// The names in the `depends=` line of a module's own description. None if it is no module.
fn needs(module: &[u8]) -> Option<Vec<String>> {
    let description = Elf::parse(module)?.section(".modinfo")?;
    let line = description.split(|byte| *byte == 0).find_map(|line| line.strip_prefix(b"depends="))?;
    let line = str::from_utf8(line).ok()?;
    Some(line.split(',').filter(|name| !name.is_empty()).map(canonical).collect())
}

/// Every module file under a directory, by module name.
fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        if entry.file_type().at("look at", entry.path())?.is_dir() {
            index(&entry.path(), files)?;
        } else if let Some(name) = module_name(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// `virtio_rng` for `…/virtio-rng.ko.xz`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".ko").or_else(|| name.strip_suffix(".ko.xz")).map(canonical)
}

/// The kernel takes `-` and `_` in module names for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        return Ok(Tool::new("xz").arg("-dc").arg(path).run()?.stdout);
    }
    fs::read(path).at("read", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(lines: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        lines
            .iter()
            .map(|(name, needs)| ((*name).to_owned(), needs.iter().map(|need| (*need).to_owned()).collect()))
            .collect()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_module_comes_once_and_after_what_it_needs() {
        let depends = graph(&[
            ("virtio_blk", &["virtio_ring", "virtio"]),
            ("virtio_net", &["net_failover", "virtio_ring", "virtio"]),
            ("net_failover", &["failover"]),
            ("failover", &[]),
            ("virtio_ring", &["virtio"]),
            ("virtio", &[]),
        ]);
        let order = load_order(&names(&["virtio_blk", "virtio_net"]), &depends).unwrap();
        assert_eq!(
            order,
            names(&["virtio", "virtio_ring", "virtio_blk", "failover", "net_failover", "virtio_net"])
        );
    }

    #[test]
    fn a_missing_module_and_a_circle_are_errors() {
        let missing = load_order(&names(&["a"]), &graph(&[("a", &["b"])]));
        assert!(matches!(missing, Err(Error::NoModule { module }) if module == "b"));
        let circle = load_order(&names(&["a"]), &graph(&[("a", &["b"]), ("b", &["a"])]));
        assert!(matches!(circle, Err(Error::ModuleCycle { module }) if module == "a"));
    }

    #[test]
    fn a_modules_name_does_not_depend_on_how_its_file_is_written() {
        for path in ["kernel/drivers/virtio-rng.ko", "virtio_rng.ko.xz"] {
            assert_eq!(module_name(Path::new(path)).as_deref(), Some("virtio_rng"));
        }
        assert_eq!(module_name(Path::new("modules.order")), None);
    }

    #[test]
    fn compressed_modules_are_read_as_what_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("a.ko");
        fs::write(&plain, "module").unwrap();
        Tool::new("xz").arg("--keep").arg(&plain).run().unwrap();
        assert_eq!(read_module(&dir.path().join("a.ko.xz")).unwrap(), b"module");
        assert_eq!(read_module(&plain).unwrap(), b"module");
    }
}
