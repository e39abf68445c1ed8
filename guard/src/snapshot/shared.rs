//! A value that one section makes and others wait for.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Instant,
};

pub struct Shared<T> {
    value: Mutex<Option<Arc<T>>>,
    there: Condvar,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { value: Mutex::new(None), there: Condvar::new() }
    }
}

impl<T> Shared<T> {
    pub fn put(&self, value: T) -> Arc<T> {
        let value = Arc::new(value);
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&value));
        self.there.notify_all();
        value
    }

    /// `None`: it did not come in time.
    pub fn wait(&self, until: Instant) -> Option<Arc<T>> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.saturating_duration_since(Instant::now());
        let (value, _) =
            self.there.wait_timeout_while(value, left, |value| value.is_none()).unwrap_or_else(PoisonError::into_inner);
        value.clone()
    }
}
