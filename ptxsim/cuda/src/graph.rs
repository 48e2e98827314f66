//! Graphs: `cuGraph*`.
//!
//! A graph is what a stream captured, as a list. Memory that the stream allocated meanwhile belongs to the graph and to
//! whatever was instantiated from it, and is freed with the last of them.

use crate::abi::{Handle, Out, entry_points};
use crate::driver::{Driver, State, in_context, initialised, lock};
use crate::error::{Error, Result};
use crate::stream::submit;
use crate::work::Work;
use std::collections::HashMap;
use std::ffi::c_ulonglong;
use std::sync::{Arc, Mutex};

const AUTO_FREE_ON_LAUNCH: u64 = 1;
const UPLOAD: u64 = 2;
const DEVICE_LAUNCH: u64 = 4;
const USE_NODE_PRIORITY: u64 = 8;

/// Captured work.
pub(crate) struct Graph {
    nodes: Arc<[Work]>,
    memory: Arc<GraphMemory>,
}

/// A graph ready to be launched.
pub(crate) struct Executable {
    pub(crate) nodes: Arc<[Work]>,
    memory: Arc<GraphMemory>,
    auto_free: bool,
}

/// Memory allocated during a capture.
pub(crate) struct GraphMemory {
    driver: &'static Driver,
    /// Addresses that the graph allocates and leaves allocated: whether they are, since the last launch.
    kept: Mutex<HashMap<u64, bool>>,
    addresses: Vec<u64>,
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        for address in &self.addresses {
            let _ = self.driver.memory.free(*address);
        }
    }
}

impl Graph {
    pub(crate) fn new(
        driver: &'static Driver,
        state: &mut State,
        nodes: Vec<Work>,
        memory: HashMap<u64, bool>,
    ) -> Arc<Graph> {
        let addresses: Vec<u64> = memory.keys().copied().collect();
        let kept = memory.into_iter().filter(|(_, freed)| !freed).map(|(address, _)| (address, false)).collect();
        let memory = Arc::new(GraphMemory { driver, kept: Mutex::new(kept), addresses });
        state.graph_memory.retain(|_, memory| memory.strong_count() > 0);
        state.graph_memory.extend(memory.addresses.iter().map(|address| (*address, Arc::downgrade(&memory))));
        Arc::new(Graph { nodes: nodes.into(), memory })
    }
}

impl State {
    /// Frees what a launched graph left allocated: whether the address is a graph's.
    pub(crate) fn free_graph_memory(&mut self, address: u64) -> Result<bool> {
        let Some(memory) = self.graph_memory.get(&address).and_then(|memory| memory.upgrade()) else {
            return Ok(false);
        };
        match lock(&memory.kept).get_mut(&address) {
            Some(allocated) if *allocated => {
                *allocated = false;
                Ok(true)
            }
            _ => Err(Error::INVALID_VALUE),
        }
    }
}

impl Executable {
    /// Refuses a launch that would use host memory that was freed, or allocate what is still allocated.
    fn check(&self, state: &State) -> Result {
        check_host_memory(&self.nodes, state)?;
        let mut kept = lock(&self.memory.kept);
        if !self.auto_free && kept.values().any(|allocated| *allocated) {
            eprintln!(
                "ptxsim: cuGraphLaunch: memory that the graph allocated in its last launch is still allocated; free it, or \
                 instantiate with CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH"
            );
            return Err(Error::INVALID_VALUE);
        }
        kept.values_mut().for_each(|allocated| *allocated = true);
        Ok(())
    }
}

fn check_host_memory(nodes: &[Work], state: &State) -> Result {
    for node in nodes {
        match node {
            Work::ToDevice { from: host, bytes, .. } | Work::ToHost { to: host, bytes, .. }
                if !state.is_pinned(*host, *bytes) =>
            {
                eprintln!(
                    "ptxsim: cuGraphLaunch: the graph copies pinned memory at {:#x}, which was freed",
                    host.address()
                );
                return Err(Error::INVALID_VALUE);
            }
            Work::Graph(graph) => check_host_memory(&graph.nodes, state)?,
            _ => {}
        }
    }
    Ok(())
}

entry_points! {
    /// Makes a graph ready to be launched.
    fn cuGraphInstantiateWithFlags(executable: Out<Handle>, graph: Handle, flags: c_ulonglong) {
        let driver = in_context()?;
        let mut state = driver.state();
        let known = AUTO_FREE_ON_LAUNCH | UPLOAD | DEVICE_LAUNCH | USE_NODE_PRIORITY;
        let exclusive = AUTO_FREE_ON_LAUNCH | DEVICE_LAUNCH;
        if flags & !known != 0 || flags & exclusive == exclusive {
            return Err(Error::INVALID_VALUE);
        }
        let graph = state.graphs.get(graph)?;
        let ready = Executable {
            nodes: graph.nodes.clone(),
            memory: graph.memory.clone(),
            auto_free: flags & AUTO_FREE_ON_LAUNCH != 0,
        };
        let handle = state.executables.insert(Arc::new(ready));
        executable.set(handle)
    }

    /// Launches a graph into a stream: the same work again, with the same arguments.
    fn cuGraphLaunch(executable: Handle, stream: Handle) {
        let driver = in_context()?;
        let graph = {
            let state = driver.state();
            let executable = state.executables.get(executable)?;
            executable.check(&state)?;
            executable.clone()
        };
        submit(stream, Work::Graph(graph))
    }

    /// Prepares a launch, which needs no preparing.
    fn cuGraphUpload(executable: Handle, _stream: Handle) {
        in_context()?.state().executables.get(executable).map(drop)
    }

    /// How many pieces of work a graph has; the pieces themselves have no handles.
    fn cuGraphGetNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let driver = initialised()?;
        if nodes.is_some() {
            return Err(Error::NOT_SUPPORTED);
        }
        count.set(driver.state().graphs.get(graph)?.nodes.len())
    }

    /// Destroys a graph; what was instantiated from it stays.
    fn cuGraphDestroy(graph: Handle) {
        // Dropped after the tables are unlocked: the end of a graph can be the end of its memory.
        let graph = initialised()?.state().graphs.remove(graph)?;
        drop(graph);
        Ok(())
    }

    /// Destroys what was instantiated.
    fn cuGraphExecDestroy(executable: Handle) {
        let executable = initialised()?.state().executables.remove(executable)?;
        drop(executable);
        Ok(())
    }
}
