//! How diagnostics look: `golden/NAME.yaml` and what `guard check` says of it, `golden/NAME.txt`. `UPDATE_GOLDEN=1`
//! writes the latter anew; look at the difference before you keep it.

use std::{env, fs, path::Path};

use guard::policy::load_str;

#[test]
fn diagnostics_look_as_they_should() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy/golden");
    let mut seen = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        seen += 1;
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let found = match load_str(&name, &text) {
            Ok(loaded) => loaded.warnings,
            Err(found) => found,
        };
        let shown = format!("{}{}\n", found.render(false), found.summary());
        let golden = path.with_extension("txt");
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &shown).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(shown, expected, "{name}: run with UPDATE_GOLDEN=1 and look at the difference");
    }
    assert!(seen >= 4);
}
