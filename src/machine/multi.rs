//! Multi: all or nothing (§4.3).
//!
//! Operations run one after the other on the tree itself, each seeing what the ones before it did.
//! At the first that fails, the tree takes everything back.

use super::apply::Write;
use super::{Caller, Machine};
use crate::wire::{Answer, ErrorCode, SubAnswer, SubRequest};

impl Machine {
    /// Runs the operations of a multi under one zxid. The answer is a success even if an operation
    /// failed: then its entries say which one.
    pub(super) fn multi(
        &mut self,
        operations: &[SubRequest],
        caller: &Caller<'_>,
        write: Write,
    ) -> Answer {
        self.tree.begin();
        let mut answers = Vec::with_capacity(operations.len());
        for (failed, operation) in operations.iter().enumerate() {
            match self.run_one(operation, caller, write) {
                Ok(answer) => answers.push(answer),
                Err(code) => {
                    self.tree.roll_back();
                    self.changes.clear();
                    return Answer::Multi(failures(operations.len(), failed, code));
                }
            }
        }
        self.tree.commit();
        Answer::Multi(answers)
    }

    fn run_one(
        &mut self,
        operation: &SubRequest,
        caller: &Caller<'_>,
        write: Write,
    ) -> Result<SubAnswer, ErrorCode> {
        Ok(match operation {
            SubRequest::Create(create) => self.create_in_multi(create, caller, write)?,
            SubRequest::Delete { path, version } => {
                self.delete(path, *version, caller, write)?;
                SubAnswer::Delete
            }
            SubRequest::SetData {
                path,
                data,
                version,
            } => {
                SubAnswer::SetData(self.set_data(path, data.as_deref(), *version, caller, write)?)
            }
            SubRequest::Check { path, version } => {
                self.check_version(path, *version, caller)?;
                SubAnswer::Check
            }
            SubRequest::GetData { .. } | SubRequest::GetChildren { .. } => {
                return Err(ErrorCode::Unimplemented);
            }
        })
    }
}

/// What a failed multi is answered: what is before the failure did not happen, what is after it
/// was not tried.
fn failures(count: usize, failed: usize, code: ErrorCode) -> Vec<SubAnswer> {
    let entry = |index: usize| match index.cmp(&failed) {
        std::cmp::Ordering::Less => None,
        std::cmp::Ordering::Equal => Some(code),
        std::cmp::Ordering::Greater => Some(ErrorCode::RuntimeInconsistency),
    };
    (0..count)
        .map(|index| SubAnswer::Error(entry(index)))
        .collect()
}
