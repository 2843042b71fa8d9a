//! The models this server offers.
//!
//! Invariants:
//! - every model was checked when it was loaded; a bad file stops the start with its name;
//! - robots see cards, never tables.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moai_fhe::Model;
use moai_transport::ids::ModelId;

const MAX_FILE_LEN: u64 = 8 * 1024 * 1024;

/// Why the models cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    /// A file or the directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is no usable model.
    #[error("{} is not a usable model: {reason}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing to offer.
    #[error("{} holds no *.json model", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
}

/// Models by id.
pub struct Models(BTreeMap<ModelId, Arc<Model>>);

impl Models {
    /// Loads every `*.json` of a directory.
    ///
    /// # Errors
    /// The directory cannot be read or is empty, or a file is no model.
    pub fn load(directory: &Path) -> Result<Self, ModelsError> {
        let read_error = |path: &Path| {
            let path = path.to_owned();
            move |source| ModelsError::Read { path, source }
        };
        let mut models = BTreeMap::new();
        let entries = std::fs::read_dir(directory).map_err(read_error(directory))?;
        for entry in entries {
            let path = entry.map_err(read_error(directory))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let wrong = |reason: String| ModelsError::Model { path: path.clone(), reason };
            if std::fs::metadata(&path).map_err(read_error(&path))?.len() > MAX_FILE_LEN {
                return Err(wrong(format!("it is larger than {MAX_FILE_LEN} bytes")));
            }
            let text = std::fs::read(&path).map_err(read_error(&path))?;
            let model = Model::from_json(&text).map_err(|error| wrong(error.to_string()))?;
            let id: ModelId =
                model.card().id().parse().map_err(|error| wrong(format!("its id: {error}")))?;
            if models.insert(id, Arc::new(model)).is_some() {
                return Err(wrong("another file has the same id".to_owned()));
            }
        }
        if models.is_empty() {
            return Err(ModelsError::Empty { path: directory.to_owned() });
        }
        Ok(Self(models))
    }

    /// A model.
    #[must_use]
    pub fn get(&self, id: &ModelId) -> Option<&Arc<Model>> {
        self.0.get(id)
    }

    /// The ids, sorted.
    pub fn ids(&self) -> impl Iterator<Item = &ModelId> {
        self.0.keys()
    }
}
