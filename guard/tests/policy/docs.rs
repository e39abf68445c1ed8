//! Every example of docs/policy.md is run: those under `<!-- error: MESSAGE -->` must fail with that message, the rest
//! must hold, their own tests included.

use std::{fs, path::Path};

use guard::policy::{answer::answer, diagnostics::Level, ready::ready};
use tempfile::TempDir;

struct Block {
    /// After the backticks: a language, and perhaps the name of the file that it is.
    info: String,
    text: String,
    error: Option<String>,
    line: usize,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut error = None;
    let mut open: Option<Block> = None;
    for (number, line) in page.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                open =
                    Some(Block { info: info.to_owned(), text: String::new(), error: error.take(), line: number + 1 });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {
                if let Some(message) = line.strip_prefix("<!-- error: ") {
                    error = message.strip_suffix(" -->").map(str::to_owned);
                }
            }
        }
    }
    blocks
}

/// A part of a policy, with what must stand beside it.
fn complete(text: &str) -> String {
    if text.contains("version:") {
        return text.to_owned();
    }
    let mut whole = "version: 1\n".to_owned();
    for (key, line) in [("mode:", "mode: audit\n"), ("inbound:", "inbound: []\n"), ("outbound:", "outbound: []\n")] {
        if !text.lines().any(|line| line.starts_with(key)) {
            whole.push_str(line);
        }
    }
    whole + text
}

#[test]
fn every_example_is_true() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.md");
    let blocks = blocks(&fs::read_to_string(page).unwrap());
    let directory = TempDir::new().unwrap();
    fs::create_dir(directory.path().join("lists")).unwrap();
    fs::write(directory.path().join("lists/tonight.txt"), "").unwrap();
    for (file, block) in blocks.iter().filter_map(|b| b.info.split_once(' ').map(|(_, file)| (file, b))) {
        fs::write(directory.path().join(file), &block.text).unwrap();
    }
    let (mut good, mut bad) = (0, 0);
    for block in blocks.iter().filter(|block| block.info == "yaml") {
        let path = directory.path().join("policy.yaml");
        fs::write(&path, complete(&block.text)).unwrap();
        match (ready(&path), &block.error) {
            (Ok(ready), None) => {
                good += 1;
                for test in &ready.loaded.policy.tests {
                    let said = answer(&ready.loaded.policy, &ready.compiled, &test.flow, ready.now).explanation;
                    assert_eq!(said.verdict, test.expect, "docs/policy.md:{}: {}", block.line, test.text);
                }
            }
            (Err(found), Some(message)) => {
                bad += 1;
                let said = found.of(Level::Error).any(|error| error.message == *message);
                assert!(said, "docs/policy.md:{}: no {message:?} in\n{}", block.line, found.render(false));
            }
            (Ok(_), Some(message)) => panic!("docs/policy.md:{}: accepted, no {message:?}", block.line),
            (Err(found), None) => panic!("docs/policy.md:{}:\n{}", block.line, found.render(false)),
        }
    }
    assert!(good >= 8 && bad >= 6, "{good} good and {bad} bad examples: are they still found?");
}
