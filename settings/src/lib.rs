//! TOML configuration files for programs that people operate.
//!
//! Invariants:
//! - every problem of a file is reported in one go, each with file and line;
//! - a key nobody asked for is a problem (a typo never passes as a default);
//! - a configuration is handed out only if there is no problem at all.
//!
//! ```
//! use std::path::Path;
//! let text = "host = \"localhost\"\nport = 1883\n";
//! let config = moai_settings::read(Path::new("agent.toml"), text, |root| {
//!     let host = root.required::<String>("host");
//!     let port = root.integer("port", 1..=65535, Some(1883));
//!     Some((host?, port?))
//! });
//! assert_eq!(config.unwrap(), ("localhost".to_owned(), 1883));
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The largest configuration file that is read, in bytes.
pub const MAX_FILE_LEN: u64 = 256 * 1024;

/// One thing that is wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// 1-based line in the file.
    pub line: usize,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Why a configuration could not be used. Fix the file; a retry changes nothing.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file could not be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is larger than [`MAX_FILE_LEN`].
    #[error("the configuration file {} is larger than {MAX_FILE_LEN} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file was read and has problems; all of them are listed.
    #[error("{}", list(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Every problem, in the order of the lines.
        problems: Vec<Problem>,
    },
}

fn list(path: &Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| format!("{}:{}: {}", path.display(), problem.line, problem.message))
        .collect();
    lines.join("\n")
}

/// Reads `path` and builds a configuration with `build`.
///
/// # Errors
/// The file cannot be read, is too large, or has problems.
pub fn load<T>(
    path: &Path,
    build: impl FnOnce(&mut Section<'_>) -> Option<T>,
) -> Result<T, SettingsError> {
    let read_error = |source| SettingsError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(read_error)?.len() > MAX_FILE_LEN {
        return Err(SettingsError::TooLarge { path: path.to_owned() });
    }
    let text = std::fs::read_to_string(path).map_err(read_error)?;
    read(path, &text, build)
}

/// Builds a configuration from `text`; `path` only names it in messages.
///
/// `build` takes what it needs from the root section; where a value is missing or wrong it gets
/// `None` and the problem is noted, so it can go on and collect the others.
///
/// # Errors
/// [`SettingsError::Invalid`] with every problem found.
pub fn read<T>(
    path: &Path,
    text: &str,
    build: impl FnOnce(&mut Section<'_>) -> Option<T>,
) -> Result<T, SettingsError> {
    let (table, syntax) = DeTable::parse_recoverable(text);
    let problems = Problems { text, found: RefCell::default() };
    for error in &syntax {
        problems.note(error.span().map_or(0, |span| span.start), error.message());
    }
    let mut config = None;
    if syntax.is_empty() {
        let mut root = Section::new(String::new(), 0, table.into_inner(), &problems);
        config = build(&mut root);
        root.finish();
    }
    let mut found = problems.found.into_inner();
    found.sort();
    found.dedup();
    match config {
        Some(config) if found.is_empty() => Ok(config),
        _ => Err(SettingsError::Invalid { path: path.to_owned(), problems: found }),
    }
}

struct Problems<'t> {
    text: &'t str,
    found: RefCell<Vec<Problem>>,
}

impl Problems<'_> {
    fn line(&self, offset: usize) -> usize {
        let before = self.text.get(..offset).unwrap_or(self.text);
        before.bytes().filter(|byte| *byte == b'\n').count() + 1
    }

    fn note(&self, offset: usize, message: impl fmt::Display) {
        let line = self.line(offset);
        self.found.borrow_mut().push(Problem { line, message: message.to_string() });
    }
}

/// One table of the file. Take every key it may have; what is left over is reported as unknown.
pub struct Section<'t> {
    name: String,
    offset: usize,
    entries: BTreeMap<String, (usize, Spanned<DeValue<'t>>)>,
    known: Vec<&'static str>,
    problems: &'t Problems<'t>,
}

impl<'t> Section<'t> {
    fn new(name: String, offset: usize, table: DeTable<'t>, problems: &'t Problems<'t>) -> Self {
        let entries = table
            .into_iter()
            .map(|(key, value)| {
                let offset = key.span().start;
                (key.into_inner().into_owned(), (offset, value))
            })
            .collect();
        Self { name, offset, entries, known: Vec::new(), problems }
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn take(&mut self, key: &'static str) -> Option<(usize, DeValue<'t>)> {
        self.known.push(key);
        let (_, value) = self.entries.remove(key)?;
        Some((value.span().start, value.into_inner()))
    }

    fn missing<T>(&self, key: &str) -> Option<T> {
        self.problems.note(self.offset, format_args!("`{}` is missing", self.path(key)));
        None
    }

    fn wrong<T>(&self, offset: usize, key: &str, message: impl fmt::Display) -> Option<T> {
        self.problems.note(offset, format_args!("`{}` {message}", self.path(key)));
        None
    }

    /// A text that must be there, parsed by its type.
    pub fn required<T: FromStr>(&mut self, key: &'static str) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        self.text(key, None)
    }

    /// A text with a default, parsed by its type.
    pub fn optional<T: FromStr>(&mut self, key: &'static str, default: T) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        self.text(key, Some(default))
    }

    /// A text with a default that is itself written as text.
    pub fn text_or<T: FromStr>(&mut self, key: &'static str, default: &str) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        self.text(key, default.parse().ok())
    }

    fn text<T: FromStr>(&mut self, key: &'static str, default: Option<T>) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        match self.take(key) {
            None => default.or_else(|| self.missing(key)),
            Some((offset, DeValue::String(text))) => match text.parse() {
                Ok(value) => Some(value),
                Err(error) => self.wrong(offset, key, format_args!("is not usable: {error}")),
            },
            Some((offset, other)) => {
                self.wrong(offset, key, format_args!("must be a text, not {}", other.type_str()))
            }
        }
    }

    /// A text that may be absent, parsed by its type.
    pub fn maybe<T: FromStr>(&mut self, key: &'static str) -> Option<Option<T>>
    where
        T::Err: fmt::Display,
    {
        if self.has(key) { self.text(key, None).map(Some) } else { Some(None) }
    }

    /// Whether the key is there; from then on it counts as known.
    pub fn has(&mut self, key: &'static str) -> bool {
        self.known.push(key);
        self.entries.contains_key(key)
    }

    /// The line of a key, or of the section that lacks it, for problems that show only later.
    #[must_use]
    pub fn line(&self, key: &str) -> usize {
        let value = self.entries.get(key).map(|(_, value)| value.span().start);
        self.problems.line(value.unwrap_or(self.offset))
    }

    /// A list of texts that must be there, each parsed by its type.
    pub fn required_list<T: FromStr>(&mut self, key: &'static str) -> Option<Vec<T>>
    where
        T::Err: fmt::Display,
    {
        if self.has(key) { self.list(key) } else { self.missing(key) }
    }

    /// A list of texts, each parsed by its type; absent means empty.
    pub fn list<T: FromStr>(&mut self, key: &'static str) -> Option<Vec<T>>
    where
        T::Err: fmt::Display,
    {
        let array = match self.take(key) {
            None => return Some(Vec::new()),
            Some((_, DeValue::Array(array))) => array,
            Some((offset, _)) => return self.wrong(offset, key, "must be a list of texts"),
        };
        let items = array.into_iter().map(|item| {
            let offset = item.span().start;
            match item.into_inner() {
                DeValue::String(text) => text.parse().map_or_else(
                    |error| self.wrong(offset, key, format_args!("is not usable: {error}")),
                    Some,
                ),
                _ => self.wrong(offset, key, "must be a list of texts"),
            }
        });
        // Every item is looked at, so that every problem is named.
        items.collect::<Vec<Option<T>>>().into_iter().collect()
    }

    /// A whole number within `range`; required if there is no default.
    pub fn integer(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: Option<u64>,
    ) -> Option<u64> {
        match self.take(key) {
            None => default.or_else(|| self.missing(key)),
            Some((offset, value)) => {
                let number = value
                    .as_integer()
                    .and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok())
                    .filter(|number| range.contains(number));
                number.or_else(|| {
                    let (low, high) = (range.start(), range.end());
                    let message = format_args!("must be a whole number from {low} to {high}");
                    self.wrong(offset, key, message)
                })
            }
        }
    }

    /// `true` or `false`, with a default.
    pub fn boolean(&mut self, key: &'static str, default: bool) -> Option<bool> {
        match self.take(key) {
            None => Some(default),
            Some((_, DeValue::Boolean(value))) => Some(value),
            Some((offset, _)) => self.wrong(offset, key, "must be true or false"),
        }
    }

    /// A table within this one, read by `build`; an absent table is read as an empty one, so
    /// that its defaults apply and its required keys are named.
    pub fn section<T>(
        &mut self,
        key: &'static str,
        build: impl FnOnce(&mut Section<'_>) -> Option<T>,
    ) -> Option<T> {
        let (offset, table) = match self.take(key) {
            None => (self.offset, DeTable::new()),
            Some((offset, DeValue::Table(table))) => (offset, table),
            Some((offset, _)) => {
                return self.wrong(offset, key, format_args!("must be a table: [{key}]"));
            }
        };
        self.build(self.path(key), offset, table, build)
    }

    /// Tables within this one that have names of their own (`[key.name]`), each read by `build`;
    /// absent means none.
    pub fn named_sections<N: FromStr, T>(
        &mut self,
        key: &'static str,
        mut build: impl FnMut(&mut Section<'_>) -> Option<T>,
    ) -> Option<Vec<(N, T)>>
    where
        N::Err: fmt::Display,
    {
        let table = match self.take(key) {
            None => return Some(Vec::new()),
            Some((_, DeValue::Table(table))) => table,
            Some((offset, _)) => {
                return self.wrong(offset, key, format_args!("must be tables: [{key}.name]"));
            }
        };
        let mut items = Some(Vec::new());
        for (name, value) in table {
            let offset = name.span().start;
            let path = format!("{key}.{}", name.get_ref());
            let parsed = name.get_ref().parse().map_or_else(
                |error| self.wrong(offset, &path, format_args!("is not usable: {error}")),
                Some,
            );
            let value = match value.into_inner() {
                DeValue::Table(table) => self.build(self.path(&path), offset, table, &mut build),
                _ => self.wrong(offset, &path, format_args!("must be a table: [{path}]")),
            };
            items = items.zip(parsed.zip(value)).map(|(mut list, item)| {
                list.push(item);
                list
            });
        }
        items
    }

    /// An array of tables (`[[key]]`), each read by `build`; absent means empty.
    pub fn sections<T>(
        &mut self,
        key: &'static str,
        mut build: impl FnMut(&mut Section<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let array = match self.take(key) {
            None => return Some(Vec::new()),
            Some((_, DeValue::Array(array))) => array,
            Some((offset, _)) => {
                return self.wrong(offset, key, format_args!("must be tables: [[{key}]]"));
            }
        };
        let mut items = Some(Vec::new());
        for item in array {
            let offset = item.span().start;
            let value = match item.into_inner() {
                DeValue::Table(table) => self.build(self.path(key), offset, table, &mut build),
                _ => self.wrong(offset, key, format_args!("must hold tables: [[{key}]]")),
            };
            items = items.zip(value).map(|(mut list, value)| {
                list.push(value);
                list
            });
        }
        items
    }

    fn build<T>(
        &self,
        name: String,
        offset: usize,
        table: DeTable<'t>,
        build: impl FnOnce(&mut Section<'_>) -> Option<T>,
    ) -> Option<T> {
        let mut section = Section::new(name, offset, table, self.problems);
        let value = build(&mut section);
        section.finish();
        value
    }

    /// Notes a problem with this section as a whole, for rules that span several keys.
    pub fn problem(&self, message: impl fmt::Display) {
        self.problems.note(self.offset, message);
    }

    fn finish(self) {
        for (key, (offset, _)) in &self.entries {
            let path = self.path(key);
            let mut known = self.known.clone();
            known.sort_unstable();
            known.dedup();
            let message = format!("`{path}` is unknown here; known keys: {}", known.join(", "));
            self.problems.note(*offset, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> Result<(String, u64, bool), SettingsError> {
        read(Path::new("test.toml"), text, |root| {
            let host = root.required::<String>("host");
            let inner = root.section("link", |link| {
                let port = link.integer("port", 1..=65535, Some(1883));
                let fast = link.boolean("fast", false);
                Some((port?, fast?))
            });
            let (port, fast) = inner?;
            Some((host?, port, fast))
        })
    }

    #[test]
    fn defaults_apply_where_keys_and_sections_are_absent() {
        assert_eq!(read_all("host = 'a'").unwrap(), ("a".into(), 1883, false));
    }

    #[test]
    fn every_problem_is_reported_with_its_line() {
        let text = "hosts = 'a'\n[link]\nport = 70000\nfast = 'yes'\ncolour = 1\n";
        let message = read_all(text).unwrap_err().to_string();
        for expected in [
            "test.toml:1: `host` is missing",
            "test.toml:1: `hosts` is unknown here; known keys: host, link",
            "test.toml:3: `link.port` must be a whole number from 1 to 65535",
            "test.toml:4: `link.fast` must be true or false",
            "test.toml:5: `link.colour` is unknown here; known keys: fast, port",
        ] {
            assert!(message.contains(expected), "{expected} is not in:\n{message}");
        }
    }

    #[test]
    fn syntax_errors_name_their_line() {
        let message = read_all("host = 'a'\nport = \n").unwrap_err().to_string();
        assert!(message.starts_with("test.toml:2:"), "{message}");
    }

    #[test]
    fn what_may_be_absent_is_known_and_checked_all_the_same() {
        let build = |root: &mut Section<'_>| root.maybe::<u8>("n").zip(root.list::<u8>("l"));
        let path = Path::new("t");
        assert_eq!(read(path, "", build).unwrap(), (None, vec![]));
        assert_eq!(read(path, "n = '7'\nl = ['1', '2']", build).unwrap(), (Some(7), vec![1, 2]));
        let message = read(path, "n = 'x'\nl = ['y']\nm = 1", build).unwrap_err().to_string();
        for expected in ["t:1: `n` is not", "t:2: `l` is not", "known keys: l, n"] {
            assert!(message.contains(expected), "{expected} is not in:\n{message}");
        }
    }

    #[test]
    fn tables_with_names_are_read_with_their_names() {
        let build = |root: &mut Section<'_>| {
            root.named_sections::<u8, _>("n", |entry| entry.integer("v", 1..=9, Some(1)))
        };
        let path = Path::new("t");
        assert_eq!(read(path, "", build).unwrap(), []);
        let text = "[n.7]\n[n.8]\nv = 2\n";
        assert_eq!(read(path, text, build).unwrap(), [(7, 1), (8, 2)]);
        let message = read(path, "[n.x]\n[n.7]\nv = 0\nw = 1\n", build).unwrap_err().to_string();
        for expected in ["t:1: `n.x` is not usable", "t:3: `n.7.v` must", "t:4: `n.7.w` is unknown"]
        {
            assert!(message.contains(expected), "{expected} is not in:\n{message}");
        }
        assert!(read(path, "n = 1", build).unwrap_err().to_string().contains("[n.name]"));
    }

    #[test]
    fn arrays_of_tables_collect_their_problems() {
        let result = read(Path::new("t"), "[[task]]\nid = 'a'\n[[task]]\nname = 'b'\n", |root| {
            root.sections("task", |task| task.required::<String>("id"))
        });
        let message = result.unwrap_err().to_string();
        assert!(message.contains("t:3: `task.id` is missing"), "{message}");
        assert!(message.contains("t:4: `task.name` is unknown"), "{message}");
    }
}
