//! What README.md tells a newcomer to type, taken from README.md itself.

use crate::shell;
use anyhow::{Context as _, Result};

pub struct Readme(String);

impl Readme {
    pub fn read() -> Result<Self> {
        Ok(Self(std::fs::read_to_string(shell::root().join("README.md")).context("README.md")?))
    }

    /// The lines of the fenced block that has a line that begins so.
    fn block(&self, beginning: &str) -> Result<Vec<&str>> {
        let blocks = self.0.split("```").skip(1).step_by(2);
        // Behind the fence stands what kind of text it is.
        let mut lines = blocks.map(|block| block.lines().skip(1).collect::<Vec<_>>());
        let found = lines.find(|block| block.iter().any(|line| line.starts_with(beginning)));
        found.with_context(|| format!("README.md has no block with a line that begins with {beginning:?}"))
    }

    /// The commands of a block in their order, without what is said about them.
    pub fn commands(&self, beginning: &str) -> Result<Vec<String>> {
        let lines = self.block(beginning)?.into_iter().map(|line| line.split("  #").next().unwrap_or(line));
        Ok(lines
            .flat_map(|line| line.split(" · "))
            .map(|one| one.trim().to_owned())
            .filter(|one| !one.is_empty())
            .collect())
    }

    /// The example of a policy.
    pub fn policy(&self) -> Result<String> {
        Ok(self.block("version: ")?.join("\n") + "\n")
    }

    /// A command of the first picture, and what README.md says that it answers.
    pub fn shown(&self, command: &str) -> Result<String> {
        let prompt = format!("$ {command}");
        let block = self.block(&prompt)?;
        let answer =
            block.iter().skip_while(|line| !line.starts_with(&prompt)).skip(1).take_while(|line| !line.is_empty());
        Ok(answer.map(|line| format!("{line}\n")).collect())
    }

    /// The number that stands before these words.
    pub fn number_before(&self, words: &str) -> Result<f64> {
        let text = self.0.split_whitespace().collect::<Vec<_>>().join(" ");
        let (before, _) = text.split_once(words).with_context(|| format!("README.md does not say {words:?}"))?;
        let number = before.rsplit([' ', '(']).next().unwrap_or_default();
        number.parse().with_context(|| format!("README.md: no number before {words:?}, but {number:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# guard\n```\n$ guard explain it\ndeny  it\nwhy   because\n\n$ guard status\n```\nOne file of (16.5\nMB, all \
                        in it).\n```yaml\nversion: 1\n```\n\n```\nguard check policy.yaml      # all of it\nguard note TEXT · \
                        guard timeline   # and\n```\n";

    #[test]
    fn what_is_to_be_typed_is_found() {
        let readme = Readme(TEXT.to_owned());
        assert_eq!(
            readme.commands("guard check").unwrap(),
            ["guard check policy.yaml", "guard note TEXT", "guard timeline"]
        );
        assert_eq!(readme.policy().unwrap(), "version: 1\n");
        assert_eq!(readme.shown("guard explain it").unwrap(), "deny  it\nwhy   because\n");
        assert_eq!(readme.number_before(" MB, all in it").unwrap(), 16.5);
        assert!(readme.commands("guard fly").is_err());
        assert!(readme.number_before(" GB").is_err());
    }
}
