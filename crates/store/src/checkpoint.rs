//! Checkpoints (stub).
use crate::{error::Fatal, store::Shared};

#[derive(Debug, Default)]
pub(crate) struct Checkpointing;

impl Shared {
    pub(crate) fn is_checkpointing(&self) -> bool {
        false
    }
    pub(crate) fn checkpoint_step(&self) -> Result<bool, Fatal> {
        Ok(false)
    }
    pub(crate) fn checkpoint_now(&self) -> Result<(), Fatal> {
        Ok(())
    }
}
