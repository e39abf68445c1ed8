//! A bounded map that forgets what was not touched for longest, in two halves.

use std::{collections::HashMap, hash::Hash};

/// Keeps the `capacity` entries touched last at least, and twice as many at most.
#[derive(Clone, Debug)]
pub struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    capacity: usize,
}

impl<K: Eq + Hash + Clone, V> Recent<K, V> {
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), capacity: capacity.max(1) }
    }

    pub fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.capacity && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// Touches it.
    pub fn get(&mut self, key: &K) -> Option<&mut V> {
        if let Some(value) = self.old.remove(key) {
            self.insert(key.clone(), value);
        }
        self.young.get_mut(key)
    }

    #[cfg(test)]
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.young.remove(key).or_else(|| self.old.remove(key))
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_touched_and_stays_within_bounds() {
        let mut recent = Recent::new(10);
        recent.insert("kept", 0);
        let names: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        for name in &names {
            recent.insert(name.as_str(), 1);
            assert_eq!(recent.get(&"kept"), Some(&mut 0), "{name}");
            assert!(recent.len() <= 20, "{}", recent.len());
        }
        assert_eq!(recent.peek(&"0"), None);
        assert_eq!(recent.peek(&"999"), Some(&1));
        assert_eq!(recent.remove(&"999"), Some(1));
        assert_eq!(recent.remove(&"999"), None);
    }
}
