//! Makes a failing stream short.
//!
//! Steps, then single requests, then parts of multis are left out for as long as the same field
//! still differs. A step that has lost what it needs (a connection, a session) does nothing, so any
//! subset of a stream is a stream.

use std::time::{Duration, Instant};

use crate::request::Request;
use crate::run::{Failure, Step};

/// Time after which the shortest stream so far must do: a failure may cost two starts of servers.
const SEARCH: Duration = Duration::from_secs(150);

/// Runs a stream from scratch and tells how it fails.
pub trait Try {
    fn run(&mut self, steps: &[Step]) -> Result<(), Failure>;
}

/// The shortest stream found that fails in the same field, and how it fails. None if the stream
/// does not fail by itself.
pub fn shrink(
    subject: &mut dyn Try,
    steps: &[Step],
    first: &Failure,
) -> Option<(Vec<Step>, Failure)> {
    let mut search = Search {
        subject,
        field: &first.mismatch.field,
        end: Instant::now() + SEARCH,
    };
    let mut best = (steps.to_vec(), search.fails(steps)?);
    best = search.cut_off(best);
    best = search.leave_out(best);
    best = search.simplify(best);
    best = search.leave_out(best);
    Some(best)
}

struct Search<'a> {
    subject: &'a mut dyn Try,
    field: &'a str,
    end: Instant,
}

type Found = (Vec<Step>, Failure);

impl Search<'_> {
    fn fails(&mut self, steps: &[Step]) -> Option<Failure> {
        let failure = self.subject.run(steps).err()?;
        (failure.mismatch.field == self.field).then_some(failure)
    }

    /// Drops what comes behind the failure.
    fn cut_off(&mut self, best: Found) -> Found {
        let end = (best.1.step + 1).min(best.0.len());
        let head = best.0[..end].to_vec();
        match self.fails(&head) {
            Some(failure) => (head, failure),
            None => best,
        }
    }

    /// Leaves out ever smaller runs of steps.
    fn leave_out(&mut self, mut best: Found) -> Found {
        let mut size = (best.0.len() / 2).max(1);
        loop {
            let mut start = 0;
            let mut shorter = false;
            while start < best.0.len() && Instant::now() < self.end {
                let end = (start + size).min(best.0.len());
                let candidate = [&best.0[..start], &best.0[end..]].concat();
                match self.fails(&candidate) {
                    Some(failure) => {
                        best = self.cut_off((candidate, failure));
                        shorter = true;
                    }
                    None => start = end,
                }
            }
            match size {
                1 if !shorter => return best,
                1 => {}
                _ => size /= 2,
            }
            if Instant::now() >= self.end {
                return best;
            }
        }
    }

    /// Replaces steps by smaller ones: fewer requests at once, fewer parts of a multi.
    fn simplify(&mut self, mut best: Found) -> Found {
        let mut at = 0;
        while at < best.0.len() && Instant::now() < self.end {
            let smaller = smaller(&best.0[at]);
            let better = smaller.into_iter().find_map(|replacement| {
                let mut candidate = best.0.clone();
                candidate.splice(at..=at, replacement);
                let failure = self.fails(&candidate)?;
                Some((candidate, failure))
            });
            match better {
                Some(found) => best = found,
                None => at += 1,
            }
        }
        best
    }
}

/// What might stand in a step's place, the most promising first. Each is smaller than the step.
fn smaller(step: &Step) -> Vec<Vec<Step>> {
    let mut found = Vec::new();
    match step {
        Step::Pipeline { who, requests } => {
            let who = *who;
            if requests.len() > 1 {
                let single = |request: &(i32, Request)| Step::Pipeline {
                    who,
                    requests: vec![request.clone()],
                };
                found.push(requests.iter().map(single).collect());
                for left_out in 0..requests.len() {
                    let mut requests = requests.clone();
                    requests.remove(left_out);
                    found.push(vec![Step::Pipeline { who, requests }]);
                }
            }
            for (at, (xid, request)) in requests.iter().enumerate() {
                for simpler in simpler(request) {
                    let mut requests = requests.clone();
                    requests[at] = (*xid, simpler);
                    found.push(vec![Step::Pipeline { who, requests }]);
                }
            }
        }
        Step::Together { parts } => {
            let one_by_one = parts.iter().map(|(who, requests)| Step::Pipeline {
                who: *who,
                requests: requests.clone(),
            });
            found.push(one_by_one.collect());
        }
        _ => {}
    }
    found
}

fn simpler(request: &Request) -> Vec<Request> {
    match request {
        Request::Multi { op, parts } => {
            let without = |left_out| {
                let mut parts = parts.clone();
                parts.remove(left_out);
                Request::Multi { op: *op, parts }
            };
            (0..parts.len()).map(without).collect()
        }
        Request::Create {
            op,
            path,
            data: Some(data),
            acl,
            flags,
            ttl,
        } if !data.is_empty() => vec![Request::Create {
            op: *op,
            path: path.clone(),
            data: Some(Vec::new()),
            acl: acl.clone(),
            flags: *flags,
            ttl: *ttl,
        }],
        _ => Vec::new(),
    }
}
