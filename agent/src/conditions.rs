//! What keeps parts of the agent from their work, for health and status.
//!
//! Invariant: one reason for each part; a part that is well has none.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// Where parts of the agent tell what they suffer from.
#[derive(Clone)]
pub struct Conditions(watch::Sender<BTreeMap<String, String>>);

impl Default for Conditions {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

impl Conditions {
    /// `part` suffers from `reason`, or from nothing. Whoever watches is woken by changes only.
    pub fn set(&self, part: &str, reason: Option<String>) {
        self.0.send_if_modified(|conditions| match reason {
            Some(reason) => conditions.insert(part.to_owned(), reason.clone()) != Some(reason),
            None => conditions.remove(part).is_some(),
        });
    }

    /// The reasons by part.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<BTreeMap<String, String>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_wake_who_watches() {
        let conditions = Conditions::default();
        let mut watch = conditions.watch();
        conditions.set("arm", None);
        assert!(!watch.has_changed().unwrap());
        conditions.set("arm", Some("no server".to_owned()));
        assert!(watch.has_changed().unwrap());
        assert_eq!(watch.borrow_and_update().get("arm").map(String::as_str), Some("no server"));
        conditions.set("arm", Some("no server".to_owned()));
        assert!(!watch.has_changed().unwrap());
        conditions.set("arm", None);
        assert!(watch.borrow_and_update().is_empty());
    }
}
