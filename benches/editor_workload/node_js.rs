//! The chats in Node.js, on both sides: the same plan, written to a file for it.

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::{Result, anyhow, ensure};
use serde_json::json;

use crate::config::RunConfig;
use crate::item::Text;
use crate::plan::{CHATS, Chat, ChatId, PACE, THINKS};

/// Unpaced chats of each thread; then they begin again.
const UNPACED: u32 = 60;

/// Fails unless Node.js is installed and new enough for the scripts.
pub(crate) fn require(node: &Path) -> Result<()> {
    let output = Command::new(node).arg("--version").output();
    let output = output.map_err(|error| anyhow!("`{} --version`: {error}", node.display()))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut numbers = version.trim_start_matches('v').split('.').map(|it| it.parse::<u32>().unwrap_or(0));
    let version_of = [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)];
    ensure!(version_of >= [20, 15], "it needs version 20.15 or later, and {} is {version}", node.display());
    Ok(())
}

/// Returns the command of one of its two processes.
pub(crate) fn command(node: &Path, role: &str, config: &RunConfig, folder: &Path) -> Result<Command> {
    let file = folder.join("plan.json");
    if !file.exists() {
        fs::write(&file, serde_json::to_string(&plan_of(config))?)?;
        fs::write(folder.join("text"), Text::new(config.plan.seed).bytes())?;
    }
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("editor_workload/js");
    let mut command = Command::new(node);
    command.arg(scripts.join(format!("{role}.js"))).arg(folder);
    Ok(command)
}

fn plan_of(config: &RunConfig) -> serde_json::Value {
    let plan = &config.plan;
    let paced = |thread: u32| -> Vec<Chat> {
        let chats = (0..).zip(plan.paced_chats(thread));
        chats.map(|(index, chunks)| plan.chat(ChatId { unpaced: false, thread, index }, chunks)).collect()
    };
    let unpaced = |thread: u32| -> Vec<Chat> {
        let which = (0..UNPACED).map(|index| ChatId { unpaced: true, thread, index });
        which.map(|which| plan.chat(which, plan.unpaced_chat(which))).collect()
    };
    let questions: Vec<u32> = (0..64).map(|tick| plan.rng(7, tick).u32(THINKS)).collect();
    json!({
        "path": config.path,
        "pace": PACE,
        "paced": (0..CHATS).map(paced).collect::<Vec<_>>(),
        "unpaced": (0..CHATS).map(unpaced).collect::<Vec<_>>(),
        "pacedMillis": plan.paced.as_millis(),
        "unpacedMillis": plan.unpaced.as_millis(),
        "questions": questions,
    })
}
