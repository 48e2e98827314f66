//! Runs side by side on one model. In every round each of them takes a step, and the parts of their steps go through the
//! model in passes of several prompts, so that each weight is read once for all of them. One run alone is the case of one.

use super::run::{Run, Step};
use super::{Observer, Summary};
use crate::error::{Error, Result};
use crate::step::Batch;
use crate::tensor::Tensor;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A run that has not ended, and its place among all.
struct Member<'a> {
    index: usize,
    run: Run<'a>,
}

/// Goes on with `runs` until each has ended, at most `group_size` prompts in a pass. `observers` has one for each.
pub(super) fn go(
    runs: Vec<Result<Run<'_>>>,
    observers: &mut [&mut dyn Observer],
    group_size: usize,
    interrupt: &AtomicUsize,
) -> Vec<Result<Summary>> {
    let mut outcomes: Vec<Option<Result<Summary>>> = Vec::new();
    let mut members = Vec::new();
    for (index, run) in runs.into_iter().enumerate() {
        match run {
            Ok(run) => {
                members.push(Member { index, run });
                outcomes.push(None);
            }
            Err(error) => outcomes.push(Some(Err(error))),
        }
    }
    let mut most = group_size.max(1);
    loop {
        members = ended(members, observers, &mut outcomes);
        if members.is_empty() {
            break;
        }
        let mut steps: Vec<Result<Step>> = members.iter_mut().map(|member| member.run.next()).collect();
        if let Some(signal) = find(&members, &mut steps, &mut most, interrupt) {
            for Member { index, run } in members {
                let saved = run.save(&mut *observers[index]);
                outcomes[index] = Some(saved.and(Err(Error::Interrupted { signal })));
            }
            break;
        }
        let mut left = Vec::new();
        for (mut member, step) in members.into_iter().zip(steps) {
            match step.and_then(|step| member.run.take(step, &mut *observers[member.index])) {
                Ok(()) => left.push(member),
                Err(error) => outcomes[member.index] = Some(Err(error)),
            }
        }
        members = left;
    }
    let missing = || Err(Error::op("train", "an end of every run", "none"));
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect()
}

/// Takes the runs that have no further step to their end, and gives the others.
fn ended<'a>(
    members: Vec<Member<'a>>,
    observers: &mut [&mut dyn Observer],
    outcomes: &mut [Option<Result<Summary>>],
) -> Vec<Member<'a>> {
    let mut left = Vec::new();
    for member in members {
        match member.run.ended() {
            Some(why) => outcomes[member.index] = Some(member.run.finish(why, &mut *observers[member.index])),
            None => left.push(member),
        }
    }
    left
}

/// Finds losses and gradients of all parts of all steps. A signal's number ends it before the next pass.
fn find(members: &[Member<'_>], steps: &mut [Result<Step>], most: &mut usize, interrupt: &AtomicUsize) -> Option<i32> {
    let parts = steps.iter().flatten().map(|step| step.parts.len()).max().unwrap_or(0);
    for part in 0..parts {
        let has_part = |step: &Result<Step>| step.as_ref().is_ok_and(|step| part < step.parts.len());
        let with_part: Vec<usize> = (0..steps.len()).filter(|&at| has_part(&steps[at])).collect();
        let (mut waiting, mut width) = (&with_part[..], *most);
        while !waiting.is_empty() {
            if let signal @ 1.. = interrupt.load(Ordering::Relaxed) {
                return Some(i32::try_from(signal).unwrap_or(0));
            }
            let (now, rest) = waiting.split_at(waiting.len().min(width));
            match pass(members, steps, now, part) {
                Ok(()) => waiting = rest,
                // Whose fault it is shows when each is by itself; what did not fit into memory may fit then.
                Err(error) if now.len() > 1 => {
                    width = now.len().div_ceil(2);
                    if matches!(error, Error::Device(_)) {
                        *most = width;
                    }
                }
                Err(error) => {
                    steps[now[0]] = Err(error);
                    waiting = rest;
                }
            }
        }
    }
    None
}

/// Sends part number `part` of the steps `now` through the model, together where they are several.
fn pass(members: &[Member<'_>], steps: &mut [Result<Step>], now: &[usize], part: usize) -> Result<()> {
    let subject = |at: usize| members[at].run.subject();
    if let &[at] = now {
        let Ok(step) = &mut steps[at] else { return Ok(()) };
        let earlier = step.gradient.take();
        let (loss, gradient) = subject(at).gradient(&step.parts[part], step.label_tokens, earlier)?;
        step.add(&loss, gradient);
        return Ok(());
    }
    let prompts = now.iter().map(|&at| subject(at).prompt()).collect::<Result<Vec<Tensor>>>()?;
    let prompts: Vec<&Tensor> = prompts.iter().collect();
    let ready: Vec<&Step> = now.iter().filter_map(|&at| steps[at].as_ref().ok()).collect();
    let batches: Vec<&Batch> = ready.iter().map(|step| &step.parts[part]).collect();
    let label_tokens: Vec<usize> = ready.iter().map(|step| step.label_tokens).collect();
    let found = subject(now[0]).model().losses_and_grads(&prompts, &batches, &label_tokens)?;
    for (&at, found) in now.iter().zip(found) {
        if let Ok(step) = &mut steps[at] {
            let gradient = subject(at).sum(found.grad, step.gradient.take())?;
            step.add(&found.loss, gradient);
        }
    }
    Ok(())
}
