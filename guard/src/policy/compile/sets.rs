//! Address sets, each once: equal by pointer or by content.

use std::{collections::HashMap, hash::BuildHasher, sync::Arc};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::error::{Limit, MAX_RANGES};
use crate::policy::model::AddressSet;

/// Number of a set in [`Sets`].
pub type SetId = u32;

#[derive(Default)]
pub struct Sets<'a> {
    pub list: Vec<&'a AddressSet>,
    by_pointer: HashMap<*const AddressSet, SetId>,
    by_content: HashTable<SetId>,
    hasher: DefaultHashBuilder,
    ranges: usize,
}

impl<'a> Sets<'a> {
    pub fn intern(&mut self, set: &'a Arc<AddressSet>) -> Result<SetId, Limit> {
        if let Some(id) = self.by_pointer.get(&Arc::as_ptr(set)) {
            return Ok(*id);
        }
        let hash = self.hasher.hash_one(set.as_ref());
        let found = self.by_content.find(hash, |id| *self.list[*id as usize] == **set).copied();
        let id = match found {
            Some(id) => id,
            None => {
                self.ranges += set.v4.len() + set.v6.len();
                if self.ranges > MAX_RANGES {
                    return Err(Limit::Ranges);
                }
                let id = self.list.len() as SetId;
                self.list.push(set);
                let (list, hasher) = (&self.list, &self.hasher);
                self.by_content.insert_unique(hash, id, |id| hasher.hash_one(list[*id as usize]));
                id
            }
        };
        self.by_pointer.insert(Arc::as_ptr(set), id);
        Ok(id)
    }
}
