//! Writes evaluation keys and an encrypted input for every CKKS card in a directory, for the golden
//! results in `tests/golden/ckks`: keys of seed 01…01, inputs of `tests/golden/ckks/window.json`.

use std::path::Path;

use moai_fhe::{Entropy, EntropyError, Inputs, KeySeed, ModelCard, Window, setup};

/// Always the same bytes: what is written must be what it was.
struct Fixed;

impl Entropy for Fixed {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        out.fill(7);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).ok_or("name a directory")?;
    let directory = Path::new(&directory);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ckks");
    let rows: Vec<[f64; 6]> = serde_json::from_slice(&std::fs::read(golden.join("window.json"))?)?;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".card.json") else { continue };
        let card: ModelCard = serde_json::from_slice(&std::fs::read(&path)?)?;
        let engine = setup(&card.to_context(), &KeySeed::from_bytes([1; 32]))?;
        let window = Window::new(rows.len(), 6, rows.iter().flatten().copied())?;
        let inputs = card.inputs(&window)?;
        let write = |what: &str, bytes: &[u8]| {
            std::fs::write(directory.join(format!("{name}.{what}")), bytes)
        };
        write("keys", &engine.evaluation_keys()?)?;
        write("input", &engine.encrypt(&card, &inputs, &mut Fixed)?)?;
        if let Inputs::Values(values) = &inputs {
            write("inputs.json", &serde_json::to_vec(&values[..])?)?;
        }
    }
    Ok(())
}
