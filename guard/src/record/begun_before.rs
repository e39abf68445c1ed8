//! What earlier records tell of flows that are still held: which of them have begun, and which have ended.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, BufReader},
    path::Path,
};

use guard_common::{Direction, abi::Flow};

use super::flow::Key;

/// Flows whose beginning earlier records tell.
#[derive(Clone, Debug, Default)]
pub struct BegunBefore {
    /// By id: whether their end is told too. Such a flow may stay in the tables for its lifetime.
    pub(super) ended: HashMap<u64, bool>,
    /// Community ID to id.
    pub(super) by_tuple: HashMap<String, u64>,
}

impl BegunBefore {
    pub fn began(&mut self, flow_id: u64, community_id: &str) {
        self.ended.insert(flow_id, false);
        self.by_tuple.insert(community_id.to_owned(), flow_id);
    }

    pub fn ended(&mut self, flow_id: u64) {
        self.ended.insert(flow_id, true);
    }

    /// The id that a flow's beginning was recorded with, and whether its end was. A flow that began before guard was
    /// recorded when it was judged first, so only its ends tell.
    #[must_use]
    pub fn find(&self, key: &Key, flow: &Flow) -> Option<(u64, bool)> {
        if self.ended.is_empty() {
            return None;
        }
        let by_id = key.flow_ids(flow.first_seen).into_iter().find_map(|id| Some((id, *self.ended.get(&id)?)));
        by_id.or_else(|| {
            let adopted = flow.flags & Flow::ADOPTED != 0;
            adopted.then(|| self.of_tuple(key, flow)).flatten().map(|id| (id, false))
        })
    }

    /// The id of the last flow with these ends, if it has not ended.
    #[must_use]
    pub fn of_tuple(&self, key: &Key, flow: &Flow) -> Option<u64> {
        if self.ended.is_empty() {
            return None;
        }
        let id = self.by_tuple.get(&key.community_id(Direction::from_u8(flow.direction)))?;
        (self.ended.get(id) == Some(&false)).then_some(*id)
    }
}

/// Reads them from `flows.jsonl` and the file rotated last, so that a restart does not tell them again; what is older is
/// told once more, if it is still held.
pub fn begun_before(records: &Path) -> io::Result<BegunBefore> {
    let mut begun = BegunBefore::default();
    let mut rotated = records.as_os_str().to_owned();
    rotated.push(".1");
    for path in [Path::new(&rotated), records] {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line?;
            let Some(id) = number_after(&line, b"\"flow_id\":") else { continue };
            if contains(&line, b"\"event\":\"begin\"") || contains(&line, b"\"event\":\"socket_denied\"") {
                begun.began(id, text_after(&line, b"\"community_id\":\"").unwrap_or_default());
            } else if contains(&line, b"\"event\":\"end\"") {
                begun.ended(id);
            }
        }
    }
    Ok(begun)
}

fn contains(line: &[u8], part: &[u8]) -> bool {
    line.windows(part.len()).any(|window| window == part)
}

fn number_after(line: &[u8], name: &[u8]) -> Option<u64> {
    let start = line.windows(name.len()).position(|window| window == name)? + name.len();
    let digits = line[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&line[start..start + digits]).ok()?.parse().ok()
}

/// Up to the next quotation mark.
fn text_after<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let start = line.windows(name.len()).position(|window| window == name)? + name.len();
    let length = line[start..].iter().position(|&byte| byte == b'"')?;
    std::str::from_utf8(&line[start..start + length]).ok()
}
