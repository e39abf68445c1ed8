//! The ready policies: valid, and their own tests pass.

use std::{fs, path::Path};

use guard::policy::{answer::answer, ready::ready};

#[test]
fn every_ready_policy_passes_its_own_tests() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    names.sort();
    assert!(names.len() >= 4, "{names:?}");
    for path in names {
        let ready = ready(&path).unwrap_or_else(|found| panic!("{}", found.render(false)));
        let policy = &ready.loaded.policy;
        assert!(policy.tests.len() >= 4, "{} has hardly any tests", path.display());
        for test in &policy.tests {
            let said = answer(policy, &ready.compiled, &test.flow, ready.now).explanation;
            let rule = said.rule.map(|number| policy.rules[number].label());
            assert_eq!(said.verdict, test.expect, "{}: {}", path.display(), test.text);
            assert!(test.rule.is_none() || test.rule == rule, "{}: {} by {rule:?}", path.display(), test.text);
        }
        // A rule that no test names could be broken by an edit without anyone seeing it.
        let never: Vec<_> = ready.loaded.warnings.list.iter().filter(|d| d.code == "never_decides").collect();
        assert!(never.is_empty(), "{never:?}");
    }
}
