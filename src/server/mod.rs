//! Builds the parts of a server, wires them together, starts and stops them.

mod peers;
mod recover;
mod view;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::cli::RunningServer;
use crate::config::{Config, Member};
use crate::engine::{
    Append, AuthOptions, CleanerOptions, Divergence, Engine, Event, LogKept, Options, Outdated,
    Role, Setup, Shared, SnapshotMeta,
};
use crate::machine::{FEATURE_LEVEL, Image, Machine, OriginId, RestoreError};
use crate::metrics::Metrics;
use crate::net::peer::{LinkOptions, SecretError};
use crate::net::{self, Clock, Context, Limits};
use crate::node::{self, Doorbell, Log};
use crate::proto::log::{HardState, Membership, Record};
use crate::storage::{
    Fault, LogHandle, Progress, Recovered, SnapshotReader, Storage, StorageConfig,
};
use crate::watch::WatchLimits;

pub use peers::Network;
pub use recover::{RecoverError, Stopped};
pub use view::ServerView;

/// Time between two ticks of the engine.
const ENGINE_TICK_MS: u64 = 50;
/// How long a server hears no leader before it serves read-only clients, at least (§9.5).
const READ_ONLY_AFTER_MS_MIN: u64 = 2_000;
/// How long a stopping server waits for its connections.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long a stopping leader waits until another server leads.
const HAND_OVER_PATIENCE: Duration = Duration::from_millis(1_500);
/// The disk id of a server that has no disk.
const MEMORY_DISK: u64 = 0;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Storage(#[from] Fault),
    #[error("cannot listen on {address}: {source}{}", listen_advice(.source))]
    Listen { address: String, source: io::Error },
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("cannot listen for the other servers on {address}: {source}")]
    ListenForPeers { address: String, source: io::Error },
    #[error(transparent)]
    Outdated(#[from] Outdated),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{0}")]
    Stopped(Arc<StartError>),
    #[error("the system gives no random bytes: {0}")]
    Entropy(String),
    #[error(
        "the log says that servers {members:?} belong together, but the configuration has this one \
         stand alone: name the others by server.N lines, as it was before, or remove them from the \
         ensemble first"
    )]
    NotAlone { members: Vec<u64> },
}

fn listen_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another server has this port: stop it, or choose another with --client-port"
        }
        io::ErrorKind::AddrNotAvailable => "; clientPortAddress must be an address of this machine",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need privileges",
        _ => "",
    }
}

/// Makes servers.
#[derive(Debug)]
pub struct Server;

/// A server that runs.
pub struct Running {
    address: SocketAddr,
    shared: Arc<Shared>,
    doorbell: Arc<Doorbell>,
    node: JoinHandle<()>,
    faults: watch::Receiver<Option<Arc<StartError>>>,
    stop_clients: watch::Sender<bool>,
    clients: tokio::task::JoinHandle<()>,
    network: peers::Network,
    stop_links: watch::Sender<bool>,
    runtime: Runtime,
}

impl Server {
    /// Recovers what is on disk, takes the client port, and begins to serve. Blocks until the data
    /// is loaded; `progress` is told how far that is, in bytes done and in all.
    ///
    /// # Errors
    ///
    /// Each says what to do.
    pub fn start(config: &Config, progress: Option<Progress>) -> Result<Running, StartError> {
        let clock = Clock::start();
        let doorbell = Arc::new(Doorbell::default());
        let (fault_sender, faults) = watch::channel(None);
        let secret = peers::secret(config)?;

        // The port first: an occupied one is told before minutes of loading.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("net")
            .worker_threads(net_threads())
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;
        let listener = {
            let _inside = runtime.enter();
            bind(config)?
        };
        let address = listener.local_addr().map_err(|source| StartError::Listen {
            address: config.client.to_string(),
            source,
        })?;

        let metrics = Arc::new(Metrics::default());
        let bell = doorbell.clone();
        let on_persisted = move |number, idle| bell.persisted(number, idle);
        let (recovered, log) = if config.in_memory {
            (in_memory(config), LogHandle::memory(on_persisted))
        } else {
            let (recovered, storage) =
                Storage::open(storage_config(config, progress, &metrics), load)?;
            let sender = fault_sender.clone();
            let on_fault = move |fault: Fault| {
                sender.send_replace(Some(Arc::new(fault.into())));
            };
            (recovered, storage.start(on_persisted, on_fault)?)
        };
        let ensemble = config.quorum.clone();
        if ensemble.is_none()
            && let Some(membership) = &recovered.membership
            && membership.voters.len() + membership.learners.len() > 1
        {
            let members = [&membership.voters[..], &membership.learners].concat();
            return Err(StartError::NotAlone { members });
        }
        let (level, known) = (recovered.machine.level(), FEATURE_LEVEL);
        if level > known {
            return Err(Outdated { level, known }.into());
        }
        let identity = recovered.identity;
        let me = peers::me(identity, recovered.incarnation, config);
        let engine = Engine::new(setup(config, recovered, metrics.clone())?, clock.now_ms());
        let shared = engine.shared();
        let files = Files {
            log: log.clone(),
            doorbell: doorbell.clone(),
            metrics: shared.metrics.clone(),
            faults: fault_sender.clone(),
            number: 0,
        };
        let network = peers::Network::default();
        let known = peers::Known::new(peers::addresses(&config.members).into());
        let outgoing = peers::Outgoing {
            network: network.clone(),
            known: known.clone(),
            doorbell: doorbell.clone(),
        };
        let sender = fault_sender.clone();
        let on_outdated = move |outdated: Outdated| {
            sender.send_replace(Some(Arc::new(outdated.into())));
        };
        let node = node::start(
            engine,
            files,
            outgoing,
            on_outdated,
            doorbell.clone(),
            clock,
        );
        let node = node.map_err(StartError::Thread)?;

        let (stop_links, stop) = watch::channel(false);
        match ensemble {
            None => wait_until_serving(&shared, &faults)?,
            Some(listen) => {
                let linking = peers::Linking {
                    listen,
                    me,
                    host: Arc::new(peers::Local::new(shared.clone(), doorbell.clone(), log)),
                    options: LinkOptions {
                        secret,
                        ..LinkOptions::default()
                    },
                    known,
                    network: network.clone(),
                };
                runtime.spawn(async move {
                    if let Err(error) = peers::link(linking, stop).await {
                        fault_sender.send_replace(Some(Arc::new(error)));
                    }
                });
            }
        }
        metrics.dbinittime.note(clock.now_ms());

        let limits = Limits {
            frame_bytes: config.jute_max_buffer,
            per_address: config.max_client_cnxns as usize,
            total: config.max_cnxns as usize,
            handshake: Duration::from_millis(config.sessionless_timeout_ms.into()),
            open_files: crate::cli::open_files(),
            large_frames_bytes: config.large_request_max_bytes,
        };
        let words = ServerView::new(config, address, shared.clone(), network.clone(), clock);
        let context = Context::new(shared.clone(), clock, limits, Arc::new(words));
        let (stop_clients, stop) = watch::channel(false);
        let clients = runtime.spawn(net::serve(listener, context, stop));
        Ok(Running {
            address,
            shared,
            doorbell,
            node,
            faults,
            stop_clients,
            clients,
            network,
            stop_links,
            runtime,
        })
    }
}

impl Running {
    /// If this server leads others, lets one of them lead instead: they would have to notice that
    /// it is gone.
    fn hand_over(&self) {
        let leads = || self.shared.status().role == Role::Leader;
        if !leads() {
            return;
        }
        self.doorbell.event(Event::HandOver);
        let until = Instant::now() + HAND_OVER_PATIENCE;
        while leads() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        match leads() {
            true => tracing::warn!("no other server took the leadership over"),
            false => tracing::info!("leadership was handed over"),
        }
    }

    /// What connections see of the server.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }
}

impl RunningServer for Running {
    fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was acknowledged is safe; a process that went on could not say the same of the next
    /// write.
    fn fault(&self) -> Pin<Box<dyn Future<Output = anyhow::Error> + Send>> {
        let mut faults = self.faults.clone();
        Box::pin(async move {
            let fault = faults
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|fault| fault.clone());
            match fault {
                // Its text has the cause already.
                Some(fault) => anyhow::anyhow!("{fault}"),
                // In memory there is no log thread, so nothing can fail.
                None => std::future::pending().await,
            }
        })
    }

    /// Somebody else leads, no new connections, replies that are under way are sent, the log is
    /// closed. Sessions live on.
    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        self.hand_over();
        self.stop_clients.send_replace(true);
        let clients = self.clients;
        let waited = async { tokio::time::timeout(STOP_PATIENCE, clients).await };
        if self.runtime.block_on(waited).is_err() {
            tracing::warn!("some connections were cut off");
        }
        self.doorbell.stop();
        if self.node.join().is_err() {
            tracing::error!("the node thread panicked");
        }
        self.stop_links.send_replace(true);
        if let Some(links) = self.network.get() {
            let waited = async { tokio::time::timeout(STOP_PATIENCE, links.ended()).await };
            if self.runtime.block_on(waited).is_err() {
                tracing::warn!("some links to other servers were cut off");
            }
        }
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        match &*self.faults.borrow() {
            Some(fault) => Err(anyhow::anyhow!("{fault}")),
            None => Ok(()),
        }
    }
}

/// How many threads read and write sockets. One processor is left to the log and the node: a thread
/// more would only take turns with them, and be woken to do so.
fn net_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.saturating_sub(1).max(1)
}

/// Waits until the log is replayed and clients are served, so that who is told of the address finds
/// a server there.
fn wait_until_serving(
    shared: &Shared,
    faults: &watch::Receiver<Option<Arc<StartError>>>,
) -> Result<(), StartError> {
    const PAUSE: Duration = Duration::from_millis(1);
    while !shared.is_serving() {
        if let Some(fault) = &*faults.borrow() {
            return Err(StartError::Stopped(fault.clone()));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn bind(config: &Config) -> Result<tokio::net::TcpListener, StartError> {
    let backlog = config
        .listen_backlog
        .map(|backlog| i32::try_from(backlog).unwrap_or(i32::MAX));
    let failed = |source| StartError::Listen {
        address: config.client.to_string(),
        source,
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in config.client.addresses().map_err(failed)? {
        match net::listen(address, backlog) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn storage_config(
    config: &Config,
    progress: Option<Progress>,
    metrics: &Arc<Metrics>,
) -> StorageConfig {
    StorageConfig {
        log_dir: config.log_dir.clone(),
        sync: config.force_sync,
        segment_bytes: config.segment_bytes,
        keep_snapshots: config.snap_retain_count,
        purge: config.purge,
        fsync_warn_ms: config.fsync_warn_ms.into(),
        progress,
        metrics: metrics.clone(),
        ..StorageConfig::new(&config.data_dir, config.server_id)
    }
}

fn in_memory(config: &Config) -> Recovered<Machine> {
    Recovered {
        identity: crate::storage::Identity {
            cluster: 0,
            server: config.server_id,
            disk: MEMORY_DISK,
        },
        incarnation: 1,
        hard_state: HardState::default(),
        membership: None,
        snapshot: None,
        machine: Machine::new(),
        entries: Vec::new(),
        snapshot_due: false,
        clean_shutdown: true,
        warnings: Vec::new(),
    }
}

fn setup(
    config: &Config,
    recovered: Recovered<Machine>,
    metrics: Arc<Metrics>,
) -> Result<Setup, StartError> {
    // Asked once here, so that a system without entropy fails at the start and not in a handshake.
    getrandom::fill(&mut [0; 16]).map_err(|error| StartError::Entropy(error.to_string()))?;
    let random = || {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the system gave random bytes at the start");
        bytes
    };
    let Recovered {
        identity,
        incarnation,
        hard_state,
        membership,
        machine,
        entries,
        snapshot_due,
        ..
    } = recovered;
    let (observers, voters): (Vec<_>, Vec<_>) = config.members.iter().partition(|m| m.observer);
    let ids = |members: Vec<&Member>| members.iter().map(|m| u64::from(m.id)).collect();
    let configured = match config.quorum {
        Some(_) => Membership {
            voters: ids(voters),
            learners: ids(observers),
            ..Membership::default()
        },
        None => Membership {
            voters: vec![identity.server.into()],
            ..Membership::default()
        },
    };
    Ok(Setup {
        origin: OriginId {
            server: identity.server,
            disk: identity.disk,
            incarnation,
        },
        options: options(config, metrics),
        random: Box::new(random),
        logger: crate::logging::raft_logger(),
        machine,
        hard_state,
        membership: membership.unwrap_or(configured),
        entries,
        snapshot_due,
        // There is nobody to wait for.
        admitted: config.members.len() < 2,
    })
}

fn options(config: &Config, metrics: Arc<Metrics>) -> Options {
    let ms = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    Options {
        tick_ms: ENGINE_TICK_MS,
        session_tick_ms: config.tick_ms.into(),
        min_session_timeout_ms: ms(config.min_session_timeout_ms),
        max_session_timeout_ms: ms(config.max_session_timeout_ms),
        snap_count: config.snap_count,
        outstanding_max: config.global_outstanding_limit as usize,
        outstanding_bytes_max: Options::OUTSTANDING_BYTES_MAX,
        unsent_bytes_max: config.unsent_max_bytes,
        watches: WatchLimits {
            all: config.watch_max_bytes,
            per_connection: config.watch_max_bytes_per_client,
        },
        sessions_max: config.max_sessions as usize,
        init_limit_ms: config.init_limit_ms,
        compare_every: Options::COMPARE_EVERY,
        sync_limit_ms: config.sync_limit_ms,
        linearizable_reads: config.linearizable_reads,
        local_sessions: config.local_sessions,
        local_session_upgrades: config.local_session_upgrades,
        read_only_after_ms: config
            .read_only_mode
            .then(|| READ_ONLY_AFTER_MS_MIN.max(config.tick_ms.into())),
        cleaner: CleanerOptions {
            interval_ms: config.container_check_interval_ms.into(),
            per_minute: config.container_max_per_minute.into(),
            never_used_ms: i64::try_from(config.container_max_never_used_ms).unwrap_or(i64::MAX),
        },
        auth: AuthOptions {
            digest_enabled: config.digest_enabled,
            super_digest: config.super_digest.clone(),
            skip_acl: config.skip_acl,
        },
        log_kept: LogKept::default(),
        ensemble: match config.quorum {
            None => String::new(),
            Some(_) => {
                let lines: Vec<String> = config.members.iter().map(Member::line).collect();
                lines.join("\n")
            }
        },
        found_with_majority: config.found_with_majority,
        settings: vec![
            ("enforce_quota", config.enforce_quota.into()),
            ("extended_types", config.extended_types.into()),
            ("digest_enabled", config.digest_enabled.into()),
            ("reconfig_enabled", config.reconfig_enabled.into()),
        ],
        level: FEATURE_LEVEL,
        level_max: config.feature_level_max,
        metrics,
    }
}

/// The node thread's view of the log and snapshot threads.
struct Files {
    log: LogHandle,
    doorbell: Arc<Doorbell>,
    metrics: Arc<Metrics>,
    faults: watch::Sender<Option<Arc<StartError>>>,
    /// The highest number that was appended.
    number: u64,
}

impl Log for Files {
    fn append(&mut self, append: Append) {
        self.number = append.number;
        self.log.append(append);
    }

    fn take_snapshot(&mut self, meta: SnapshotMeta, image: Image) {
        let (doorbell, metrics) = (self.doorbell.clone(), self.metrics.clone());
        let index = meta.index;
        let chunks = move |push: &mut dyn FnMut(bytes::Bytes) -> Result<(), Fault>| {
            image.chunks().try_for_each(push)
        };
        let done = move |result: Result<u64, Fault>| match result {
            Ok(bytes) => doorbell.event(Event::SnapshotTaken { index, bytes }),
            Err(fault) => {
                metrics.snapshot_error_count.add(1);
                let error = fault.survived();
                tracing::warn!(error, "no snapshot was written; the log is kept instead");
                doorbell.event(Event::SnapshotFailed);
            }
        };
        self.log.take_snapshot(meta, chunks, done);
    }

    fn diverged(&mut self, divergence: Divergence) {
        let fault = self
            .log
            .diverged(&divergence.to_string(), divergence.agreed);
        self.faults.send_replace(Some(Arc::new(fault.into())));
    }

    fn close(&mut self, hard_state: HardState) {
        let record = Record {
            hard_state: Some(hard_state),
            ..Record::default()
        };
        self.log.append(Append {
            number: self.number + 1,
            record,
            sync: true,
        });
        self.log.stop();
    }
}

/// Makes the machine from a snapshot, or an empty one.
fn load(reader: Option<SnapshotReader>) -> Result<Machine, Fault> {
    let Some(mut reader) = reader else {
        return Ok(Machine::new());
    };
    let path = reader.path().to_owned();
    let rejected = |reason: String| Fault::RejectedSnapshot {
        path: path.clone(),
        reason,
    };
    let machine = Machine::restore(&mut reader).map_err(|error| match error {
        RestoreError::Source(fault) => fault,
        // All formats from 1 on are known, up to one.
        RestoreError::Format(found @ 1..) => Fault::NewerImage {
            path: path.clone(),
            found,
        },
        other => rejected(other.to_string()),
    })?;
    // Reading to the end checks the seal of the file, even if the machine needs no more of it.
    if let Some(more) = reader.next() {
        more?;
        return Err(rejected("there is more in it than the image".to_owned()));
    }
    let (expected, actual) = (reader.meta().digest, machine.digest());
    if expected != actual {
        return Err(rejected(format!(
            "its state has the digest {actual:016x} instead of {expected:016x}"
        )));
    }
    Ok(machine)
}
