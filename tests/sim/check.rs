pub mod state;
#[derive(Clone, Debug)]
pub struct Violation {
    pub group: Group,
    pub what: String,
}
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Group {
    State,
}
pub type Verdict = Result<(), Violation>;
pub fn broken<T>(group: Group, what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { group, what: what.into() })
}
