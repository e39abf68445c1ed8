use std::fmt::Write as _;

use clap::Args;

use super::{
    Exit, Global,
    output::{Style, escape_line, json_line, print, table},
};
use crate::doctor::{Check, Examination, State, examine};

/// Say whether guard can run here, what would stop it and how to mend that
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sudo guard doctor\n  sudo guard doctor --json\n\n\
    Changes nothing. Exit code 1: something would stop guard here.")]
pub struct DoctorArgs {}

pub fn run(_: &DoctorArgs, global: &Global) -> anyhow::Result<Exit> {
    let found = examine()?;
    if global.json {
        json_line(&found)?;
    } else {
        print(&render(&found, Style::stdout()))?;
    }
    Ok(if found.can_run { Exit::Good } else { Exit::No })
}

fn render(found: &Examination, style: Style) -> String {
    let mut text = String::new();
    let stops = found.checks.iter().filter(|check| check.state == State::Stops).count();
    let headline = match stops {
        0 => style.good("guard can run here"),
        1 => style.error("guard CANNOT run here: 1 thing to mend"),
        many => style.error(&format!("guard CANNOT run here: {many} things to mend")),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{headline}   kernel {}, {}", escape_line(&found.kernel), found.machine);
    for state in [State::Stops, State::Careful, State::Good] {
        for check in found.checks.iter().filter(|check| check.state == state) {
            let _ = writeln!(text, "{}", line(check, style));
            if let Some(mend) = &check.mend {
                let _ = writeln!(text, "           {mend}");
            }
        }
    }
    for engine in &found.engines {
        let _ = writeln!(
            text,
            "  found    {} ({})\n           {}",
            engine.name,
            escape_line(&engine.found_by),
            engine.means
        );
    }
    for beside in &found.beside {
        let _ = writeln!(
            text,
            "  found    {} on {}: {}; guard stands before it, and it goes on",
            beside.hook,
            escape_line(&beside.interface),
            escape_line(&beside.program)
        );
    }
    if !found.other_firewalls.is_empty() {
        let tables: Vec<String> =
            found.other_firewalls.iter().map(|other| format!("{} {}", other.kind, escape_line(&other.table))).collect();
        let _ = writeln!(text, "  found    {}; a packet passes only where guard and these allow it", tables.join(", "));
    }
    if found.features.is_empty() {
        return text;
    }
    let mut rows = table(&["feature", "found", "what is lost without it"]);
    for feature in &found.features {
        rows.add_row([
            feature.name.to_owned(),
            if feature.found { style.good("yes") } else { style.warning("no") },
            if feature.found { String::new() } else { feature.lost_without.to_owned() },
        ]);
    }
    let _ = writeln!(text, "\n{}", rows.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n"));
    text
}

fn line(check: &Check, style: Style) -> String {
    let word = match check.state {
        State::Good => "good   ".to_owned(),
        State::Careful => style.warning("careful"),
        State::Stops => style.error("STOPS  "),
    };
    format!("  {word}  {}: {}", check.name, escape_line(&check.found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Feature;

    #[test]
    fn what_stops_it_comes_first_with_what_to_do() {
        let check = |name, state, mend: Option<&str>| Check {
            name,
            state,
            found: "as \u{1b}[31mit is".to_owned(),
            mend: mend.map(str::to_owned),
        };
        let found = Examination {
            can_run: false,
            kernel: "4.19.0".to_owned(),
            machine: "x86_64",
            features: vec![
                Feature { name: "ring buffer", found: false, required: true, lost_without: "guard does not start" },
                Feature { name: "tcx", found: true, required: false, lost_without: "clsact" },
            ],
            checks: vec![
                check("capabilities", State::Good, None),
                check("kernel", State::Stops, Some("use a newer one")),
            ],
            interfaces: Vec::new(),
            beside: Vec::new(),
            other_firewalls: Vec::new(),
            engines: Vec::new(),
        };
        let text = render(&found, Style::plain());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "guard CANNOT run here: 1 thing to mend   kernel 4.19.0, x86_64");
        assert!(lines[1].starts_with("  STOPS    kernel: as "), "{text}");
        assert_eq!(lines[2].trim(), "use a newer one");
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert!(text.contains("guard does not start") && !text.contains("clsact"), "{text}");
    }
}
