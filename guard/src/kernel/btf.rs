//! The few things that guard asks of the kernel's type information (BTF, Documentation/bpf/btf.rst): read anew for each
//! use, without a copy of it in memory. What does not parse is not there.

/// Of the kernel that runs.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Bytes that every type begins with.
const COMMON: usize = 12;
/// A member of a struct or union, an entry of an enumeration.
const MEMBER: usize = 12;
const ENTRY: usize = 8;
/// How deep structs without a name, and other names of a type, may nest: so that what points at itself ends.
const DEEPEST: u32 = 16;

pub const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
pub const FUNC: u32 = 12;

/// A whole BTF file, such as /sys/kernel/btf/vmlinux, in this machine's byte order.
#[derive(Clone, Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins, by its number less one.
    starts: Vec<u32>,
}

/// One type: its number, and what follows its common bytes.
#[derive(Clone, Copy, Debug)]
pub struct Type<'a> {
    pub id: u32,
    name: u32,
    info: u32,
    /// `size` or `type`, by the kind.
    last: u32,
    rest: &'a [u8],
}

impl<'a> Btf<'a> {
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let field = |at| word(bytes, at).map(|value| value as usize);
        let body = bytes.get(field(4)?..)?;
        let part = |from: usize, length: usize| body.get(from..from.checked_add(length)?);
        let (types, strings) = (part(field(8)?, field(12)?)?, part(field(16)?, field(20)?)?);
        let mut starts = Vec::new();
        let mut at = 0;
        // Nothing is known of what comes after a kind that is not.
        while let Some(length) = word(types, at + 4).and_then(following) {
            starts.push(u32::try_from(at).ok()?);
            at += COMMON + length;
        }
        Some(Self { types, strings, starts })
    }

    fn of_id(&self, id: u32) -> Option<Type<'a>> {
        let at = *self.starts.get(id.checked_sub(1)? as usize)? as usize;
        let (name, info, last) = (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
        let rest = self.types.get(at + COMMON..at + COMMON + following(info)?)?;
        Some(Type { id, name, info, last, rest })
    }

    /// The first type of that kind and name.
    #[must_use]
    pub fn find(&self, kind: u32, name: &str) -> Option<Type<'a>> {
        let is = |found: &Type<'_>| found.kind() == kind && self.is_called(found.name, name);
        (1..).map_while(|id| self.of_id(id)).find(is)
    }

    /// Bytes from the start of a struct to the last of `path`'s members, each in the one before it; members of structs
    /// and unions without a name count as those of the one around. `None`: not there, or a bit field.
    #[must_use]
    pub fn offset(&self, of: &str, path: &[&str]) -> Option<u32> {
        let mut found = self.find(STRUCT, of)?;
        let mut bits = 0_u32;
        for (depth, member) in path.iter().enumerate() {
            if depth > 0 {
                found = self.behind_names(found)?;
            }
            let (further, kind) = self.member(found, member, DEEPEST)?;
            bits = bits.checked_add(further)?;
            match self.of_id(kind) {
                Some(kind) => found = kind,
                None if depth + 1 == path.len() => {}
                None => return None,
            }
        }
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Bits from the start of a struct to its member, and the member's type.
    fn member(&self, of: Type<'a>, wanted: &str, depth: u32) -> Option<(u32, u32)> {
        if depth == 0 || !matches!(of.kind(), STRUCT | UNION) {
            return None;
        }
        of.rest.chunks_exact(MEMBER).find_map(|member| {
            let (name, kind, bits) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            // With this flag the upper byte is a bit field's size.
            let bits = if of.info >> 31 == 1 { bits & 0xff_ffff } else { bits };
            if self.is_called(name, wanted) {
                return Some((bits, kind));
            }
            if !self.is_called(name, "") {
                return None;
            }
            let (further, kind) = self.member(self.behind_names(self.of_id(kind)?)?, wanted, depth - 1)?;
            Some((bits.checked_add(further)?, kind))
        })
    }

    /// A type without its other names and qualifiers.
    fn behind_names(&self, mut of: Type<'a>) -> Option<Type<'a>> {
        for _ in 0..DEEPEST {
            match of.kind() {
                TYPEDEF | VOLATILE | CONST => of = self.of_id(of.last)?,
                _ => return Some(of),
            }
        }
        None
    }

    #[must_use]
    pub fn enum_value(&self, of: &str, name: &str) -> Option<u32> {
        let mut entries = self.find(ENUM, of)?.rest.chunks_exact(ENTRY);
        word(entries.find(|entry| word(entry, 0).is_some_and(|at| self.is_called(at, name)))?, 4)
    }

    fn is_called(&self, at: u32, name: &str) -> bool {
        let rest = self.strings.get(at as usize..).and_then(|text| text.strip_prefix(name.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }
}

impl Type<'_> {
    const fn kind(&self) -> u32 {
        self.info >> 24 & 0x1f
    }
}

/// Bytes after the common part; `None` for a kind that is not known, whose length nobody can tell.
fn following(info: u32) -> Option<usize> {
    let entries = (info & 0xffff) as usize;
    Some(match info >> 24 & 0x1f {
        // Integers, variables and declaration tags; arrays.
        1 | 14 | 17 => 4,
        3 => 12,
        // Structs, unions, data sections and 64-bit enumerations; enumerations and prototypes.
        STRUCT | UNION | 15 | 19 => MEMBER * entries,
        ENUM | 13 => ENTRY * entries,
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats and type tags.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An int, `struct s { int a; int b; }` and `int s()`, by hand.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0s\0a\0b\0";
        let types: [u32; 25] = [
            1,
            1 << 24,
            4,
            32, // int
            5,
            STRUCT << 24 | 2,
            8,
            7,
            1,
            0,
            9,
            1,
            32, // s
            0,
            13 << 24,
            1, // int ()
            5,
            FUNC << 24,
            3, // s
            5,
            ENUM << 24 | 1,
            4,
            9,
            6, // enum s { b = 6 }
            0,
        ];
        let types: Vec<u8> = types[..24].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for field in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(field.to_ne_bytes());
        }
        [bytes, types, strings.to_vec()].concat()
    }

    #[test]
    fn finds_what_is_there() {
        let bytes = sample();
        let btf = Btf::new(&bytes).unwrap();
        assert_eq!(btf.find(STRUCT, "s").unwrap().id, 2);
        assert_eq!(btf.find(FUNC, "s").unwrap().id, 4);
        assert!(btf.find(FUNC, "int").is_none());
        assert_eq!((btf.offset("s", &["a"]), btf.offset("s", &["b"])), (Some(0), Some(4)));
        assert_eq!((btf.offset("s", &["c"]), btf.offset("t", &["a"])), (None, None));
        assert_eq!((btf.enum_value("s", "b"), btf.enum_value("s", "a")), (Some(6), None));
    }

    #[test]
    fn what_is_cut_short_is_not_there() {
        let bytes = sample();
        for length in 0..bytes.len() {
            let _ = Btf::new(&bytes[..length])
                .map(|btf| (btf.find(FUNC, "x").is_none(), btf.offset("s", &["b"]), btf.enum_value("s", "b")));
        }
        assert!(Btf::new(b"not a BTF file").is_none());
    }

    #[test]
    fn reads_this_kernels() {
        // Not every kernel has it.
        let Ok(bytes) = std::fs::read(VMLINUX) else { return };
        let btf = Btf::new(&bytes).unwrap();
        let theirs = aya_obj::btf::Btf::from_sys_fs().unwrap();
        let id = theirs.id_by_type_name_kind("security_socket_setsockopt", aya_obj::btf::BtfKind::Func);
        assert_eq!(btf.find(FUNC, "security_socket_setsockopt").map(|found| found.id), id.ok());
        assert!(btf.offset("socket", &["sk"]).is_some_and(|offset| offset > 0));
        // Through a struct without a name, and one in another.
        assert_eq!(btf.offset("task_struct", &["tgid"]), btf.offset("task_struct", &["pid"]).map(|pid| pid + 4));
        assert!(btf.offset("net", &["ns", "inum"]) > btf.offset("net", &["ns"]));
        assert_eq!(btf.offset("net", &["ns", "no_such_field"]), None);
        assert_eq!(btf.offset("task_struct", &["real_parent", "pid"]), None, "not in it: a pointer");
    }
}
