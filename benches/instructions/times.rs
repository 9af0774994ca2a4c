/// How often each benchmark does its operation; `.ci/instructions` divides by it.
pub(crate) const TIMES: usize = 1024;
