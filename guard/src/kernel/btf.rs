//! The few things that guard asks of the kernel's type information (BTF, Documentation/bpf/btf.rst): read anew for each
//! question, without a copy of it in memory. What does not parse is not there.

const MAGIC: u16 = 0xeb9f;

pub const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
pub const FUNC: u32 = 12;

/// A whole BTF file, such as /sys/kernel/btf/vmlinux, in this machine's byte order.
#[derive(Clone, Copy, Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

/// One type: its number, and what follows its 12 common bytes.
#[derive(Clone, Copy, Debug)]
pub struct Type<'a> {
    pub id: u32,
    info: u32,
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
        Some(Self { types: part(field(8)?, field(12)?)?, strings: part(field(16)?, field(20)?)? })
    }

    /// The first type of that kind and name.
    #[must_use]
    pub fn find(&self, kind: u32, name: &str) -> Option<Type<'a>> {
        let (mut at, mut id) = (0_usize, 1_u32);
        loop {
            let (name_at, info) = (word(self.types, at)?, word(self.types, at + 4)?);
            let length = following(info)?;
            let rest = self.types.get(at + 12..at + 12 + length)?;
            if info >> 24 & 0x1f == kind && self.text(name_at) == Some(name.as_bytes()) {
                return Some(Type { id, info, rest });
            }
            at += 12 + length;
            id += 1;
        }
    }

    /// Bytes from the start of a struct to a member of its own.
    #[must_use]
    pub fn member_offset(&self, of: &str, member: &str) -> Option<u64> {
        let found = self.find(STRUCT, of)?;
        let bits = self.entry(found, 12, member, 8)?;
        // With this flag the upper byte is a bit field's size.
        let bits = if found.info >> 31 == 1 { bits & 0xff_ffff } else { bits };
        bits.is_multiple_of(8).then_some(u64::from(bits / 8))
    }

    #[must_use]
    pub fn enum_value(&self, of: &str, name: &str) -> Option<u32> {
        self.entry(self.find(ENUM, of)?, 8, name, 4)
    }

    /// A word of the entry of that name, in a type's list of entries of `size` bytes.
    fn entry(&self, of: Type<'_>, size: usize, name: &str, at: usize) -> Option<u32> {
        let mut entries = of.rest.chunks_exact(size);
        let found = entries.find(|entry| word(entry, 0).and_then(|at| self.text(at)) == Some(name.as_bytes()))?;
        word(found, at)
    }

    fn text(&self, at: u32) -> Option<&'a [u8]> {
        self.strings.get(at as usize..)?.split(|byte| *byte == 0).next()
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
        STRUCT | UNION | 15 | 19 => 12 * entries,
        ENUM | 13 => 8 * entries,
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
        assert_eq!((btf.member_offset("s", "a"), btf.member_offset("s", "b")), (Some(0), Some(4)));
        assert_eq!(btf.member_offset("s", "c"), None);
        assert_eq!((btf.enum_value("s", "b"), btf.enum_value("s", "a")), (Some(6), None));
    }

    #[test]
    fn what_is_cut_short_is_not_there() {
        let bytes = sample();
        for length in 0..bytes.len() {
            let _ = Btf::new(&bytes[..length]).map(|btf| (btf.find(FUNC, "x").is_none(), btf.enum_value("s", "b")));
        }
        assert!(Btf::new(b"not a BTF file").is_none());
    }

    #[test]
    fn reads_this_kernels() {
        // Not every kernel has it.
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let btf = Btf::new(&bytes).unwrap();
        let theirs = aya_obj::btf::Btf::from_sys_fs().unwrap();
        let id = theirs.id_by_type_name_kind("security_socket_setsockopt", aya_obj::btf::BtfKind::Func);
        assert_eq!(btf.find(FUNC, "security_socket_setsockopt").map(|found| found.id), id.ok());
        assert!(btf.member_offset("socket", "sk").is_some_and(|offset| offset > 0));
    }
}
