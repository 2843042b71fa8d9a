//! Man pages and completions are those of the command line.

use std::collections::BTreeMap;

use anyhow::Result;
use moai_tests::manual::{directory, files};

use crate::run;

#[test]
fn the_manual_is_that_of_the_command_line() -> Result<()> {
    let mut kept = BTreeMap::new();
    for entry in std::fs::read_dir(directory())? {
        let entry = entry?;
        kept.insert(entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?);
    }
    let files = files()?;
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&kept), names(&files), "`cargo xtask manual` writes it anew");
    for (name, content) in files {
        assert!(kept[&name] == content, "{name} is old: `cargo xtask manual` writes it anew");
    }
    Ok(())
}

#[tokio::test]
async fn bash_completes_commands_and_options() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let complete = async |words: &str| {
        let script = format!(
            "source {} && COMP_WORDS=({words}) && COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) && \
             _moai__agent moai-agent \"${{COMP_WORDS[-1]}}\" && echo \"${{COMPREPLY[*]}}\"",
            directory().join("moai-agent.bash").display()
        );
        let said = run("bash", ["-c", &script], scratch.path()).await?.success()?;
        anyhow::Ok(said.text())
    };
    assert_eq!(complete("moai-agent rel").await?, "reload");
    assert_eq!(complete("moai-agent status --j").await?, "--json");
    assert_eq!(complete("moai-agent task ro").await?, "rotate");
    Ok(())
}
