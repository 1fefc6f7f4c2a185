"""What Kubernetes does with deploy/kubernetes/zkraft.yaml, without Kubernetes.

Pods get their names some time after they have started, in any order, and are made anew with other
addresses. How they are made: see `kubernetes`.
"""

from __future__ import annotations

import contextlib
import re
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import lab
import raw
from manifest_suite import MANIFEST, NAMESPACE, Manifest

from .client import created
from .failover import Patron, Writer, gap_ms
from .kubernetes import HANDED_OVER, Cluster, Named, Pod, Scalable
from .network import why_not_own

# Dials and lookups have had their chance when nothing happens for so long.
LOOK_SECONDS = 3.0
# Until others serve when a leader is gone.
SERVED_SECONDS_MAX = 20
WRITES_ENOUGH = 30
AUTH = 100
# Namespaces for so many pods are made where they become more.
MORE = 5
# What a server says whose number of servers is not that of the others.
LINES_DIFFER = "the server lines of the configuration are not those of the ensemble"


def run(report: lab.Report, kind: lab.Kind) -> None:
    cases = [
        ("pods that have no names yet are live and not ready, and become one ensemble", names_late),
        ("a follower with a new address is found again", follower_moves),
        ("a leader with a new address is found again", leader_moves),
        ("one of three is live and not ready until another one is back", majority_lost),
        ("pods that have each other's addresses are told apart", addresses_swapped),
        ("while names cannot be looked up, another leader is elected", names_silent),
        ("a rolling update: each pod hands over and comes back elsewhere", rolling_update),
    ]
    waits = "a server with a name of its own waits for it, and says so"
    grows = "from three pods to five and back, as the manifest says: clients only notice restarts"
    if why := _why_not(kind):
        for name in [*(name for name, _ in cases), waits, grows]:
            report.skip(name, why)
        return
    pending = cases
    while pending:
        with contextlib.ExitStack() as stack:
            cluster = stack.enter_context(Cluster(Manifest()))
            done = 0
            for name, case in pending:
                failed = report.failed
                with report.case(name), cluster.logs_kept(name):
                    if case is not names_late:
                        cluster.start()
                    case(cluster)
                done += 1
                if report.failed > failed:
                    break
            pending = pending[done:]
    with report.case(waits), Cluster(Named()) as cluster, cluster.logs_kept(waits):
        own_name_late(cluster)
    manifest = Scalable()
    with report.case(grows), Cluster(manifest, MORE) as cluster, cluster.logs_kept(grows):
        scaled(cluster)


def _why_not(kind: lab.Kind) -> str:
    if kind != "zkraft":
        return "the manifest runs zkraft"
    if why := why_not_own():
        return why
    return Cluster.probe()


# --- Cases ----------------------------------------------------------------------------------------


def names_late(cluster: Cluster) -> None:
    for pod in cluster.pods:
        pod.move()
        pod.start()
    for pod in cluster.pods:
        pod.wait("startupProbe")
        assert pod.execute(["hostname"], 5).stdout.strip() == pod.host
    _nobody_is_ready(cluster, LOOK_SECONDS)
    for pod in cluster.pods:
        for other in cluster.pods:
            if other is not pod:
                told = f"{other.name} does not resolve"
                assert pod.says(told), f"{pod.host} does not say that it waits for {other.name}"
    # A new ensemble is formed by all, so two names are not enough.
    for ordinal in (2, 0):
        cluster.pods[ordinal].publish()
        _nobody_is_ready(cluster, 1)
    cluster.pods[1].publish()
    took = cluster.all_ready()
    print(f"  all pods are ready {took:.1f} s after the last name came")
    _is_one_ensemble(cluster)
    for pod in cluster.pods:
        assert pod.probe("livenessProbe")


def follower_moves(cluster: Cluster) -> None:
    _moves(cluster, cluster.followers()[0])


def leader_moves(cluster: Cluster) -> None:
    _moves(cluster, cluster.leader())


def _moves(cluster: Cluster, pod: Pod) -> None:
    others = [other for other in cluster.pods if other is not pod]
    running = [other.process for other in others]
    with _load(cluster) as load:
        load.leaves(pod)
        broken = load.broken(others)
        pod.kill()
        pod.withdraw()
        pod.move()
        pod.start()
        # What its node has for it is there sooner than its name is.
        pod.wait("startupProbe")
        load.goes_on(others)
        pod.publish()
        began = time.monotonic()
        pod.wait("readinessProbe")
        took = time.monotonic() - began
        load.comes_back(pod)
        load.goes_on(cluster.pods)
        assert load.broken(others) == broken, "clients of other pods lost their connections"
    print(f"  {pod.host} is ready {took:.1f} s after its new name came")
    assert running == [other.process for other in others]
    assert all(other.running() for other in others)
    _is_one_ensemble(cluster)


def majority_lost(cluster: Cluster) -> None:
    last = cluster.leader()
    others = [pod for pod in cluster.pods if pod is not last]
    for pod in others:
        pod.kill()
        pod.withdraw()
    lab.wait_until(lambda: not last.is_ready(), f"{last.host} to be no longer ready", 60)
    for probe in ("startupProbe", "livenessProbe"):
        assert last.probe(probe), f"the {probe} of {last.host} fails: it would be restarted"
    others[0].move()
    others[0].start()
    others[0].publish()
    last.wait("readinessProbe")
    others[0].wait("readinessProbe")
    assert last.running()


def addresses_swapped(cluster: Cluster) -> None:
    """An address is given to the next pod that is made, and names are behind."""
    leader = cluster.leader()
    one, two = (pod for pod in cluster.pods if pod is not leader)
    one.kill()
    two.kill()
    # Each name leads to the other one.
    one_was, two_was = one.address, two.address
    one.move(two_was)
    two.move(one_was)
    since = leader.said()
    one.start()
    two.start()
    one.wait("startupProbe")
    two.wait("startupProbe")
    for wanted, found in ((one, two), (two, one)):
        told = f"this is server {found.number}, not {wanted.number}"
        lab.wait_until(
            lambda told=told: leader.says(told, since), f"{leader.host} to say that {told}"
        )
    # It goes on for a while without the others, who may still go on without it.
    lab.wait_until(lambda: not leader.is_ready(), f"{leader.host} to be no longer ready", 60)
    _nobody_is_ready(cluster, LOOK_SECONDS)
    one.publish()
    two.publish()
    print(f"  all pods are ready {cluster.all_ready():.1f} s after their names were right")
    _is_one_ensemble(cluster)


def names_silent(cluster: Cluster) -> None:
    with _load(cluster) as load:
        leader = cluster.leader()
        others = [pod for pod in cluster.pods if pod is not leader]
        broken = load.broken(others)
        cluster.names.is_silent = True
        load.leaves(leader)
        moment = time.monotonic()
        leader.kill()
        # The container is started anew where it was.
        leader.start()
        load.goes_on(others)
        gaps = [load.gap_ms(pod, moment) for pod in others]
        print(f"  others are served again after {', '.join(f'{gap:.0f} ms' for gap in gaps)}")
        leader.wait("startupProbe")
        cluster.names.is_silent = False
        began = time.monotonic()
        leader.wait("readinessProbe")
        print(f"  {leader.host} is ready {time.monotonic() - began:.1f} s after names are answered")
        load.comes_back(leader)
        load.goes_on(cluster.pods)
        assert load.broken(others) == broken, "clients of other pods lost their connections"


def rolling_update(cluster: Cluster) -> None:
    settle = cluster.manifest.stateful_set["minReadySeconds"]
    handed_over = False
    pods = list(reversed(cluster.pods))
    with _load(cluster) as load:
        while pods:
            pod = pods.pop(0)
            others = [other for other in cluster.pods if other is not pod]
            is_leader = pod is cluster.leader()
            load.leaves(pod)
            broken, since = load.broken(others), pod.said()
            code = pod.delete()
            assert code == 0, f"exit code {code}"
            if is_leader:
                assert pod.says(HANDED_OVER, since), "it did not hand over"
                handed_over = True
            pod.withdraw()
            load.goes_on(others)
            _come_back(pod, load)
            time.sleep(settle)
            load.goes_on(cluster.pods)
            broken = load.broken(others) - broken
            role = "the leader" if is_leader else "a follower"
            print(f"  {pod.host}, {role}, is at {pod.address}; {broken} clients disconnected")
            assert broken == 0, "clients of other pods lost their connections"
            if not pods and not handed_over:
                # On a slow machine the leadership may have moved by itself.
                pods.append(cluster.leader())
        assert load.expired() == 0, "a session was lost"
    _is_one_ensemble(cluster)


def own_name_late(cluster: Cluster) -> None:
    late, *others = cluster.pods
    for pod in cluster.pods:
        pod.move()
        pod.start()
    for pod in others:
        pod.publish()
    for pod in cluster.pods:
        pod.wait("startupProbe")
    waits = "waiting for this server's own address"
    told = "its name does not resolve"
    lab.wait_until(lambda: late.says(waits) and late.says(told), f"{late.host} to say so")
    _nobody_is_ready(cluster, 1)
    # As if the address of the pod's former life were still there.
    gone = cluster.switch.fresh()
    late.publish(gone)
    told = f"{gone} is not an address of this machine"
    lab.wait_until(lambda: late.says(told), f"{late.host} to say so")
    _nobody_is_ready(cluster, 1)
    late.publish()
    print(f"  all are ready {cluster.all_ready():.1f} s after the name was right")
    _is_one_ensemble(cluster)


def scaled(cluster: Cluster) -> None:
    """What the manifest's first lines tell an operator to do, and what they say of it."""
    head = MANIFEST.read_text(encoding="utf-8").split("apiVersion")[0]
    numbers = re.search(r"^#     replicas and ZKRAFT_REPLICAS from (\d) to (\d): ", head, re.M)
    adds = re.search(r'^#     reconfig -add "(\S+)"$', head, re.M)
    removes = re.search(r"^# Fewer: reconfig -remove (\S+) first; ", head, re.M)
    assert numbers and adds and removes, "the manifest tells something else"
    few, many = map(int, numbers.groups())
    cluster.start()
    old = cluster.pods
    assert len(old) == few
    with _load(cluster) as load:
        broken = load.broken(old)
        new = cluster.scale(many)
        for pod in new:
            pod.move()
            pod.publish()
            pod.start()
        for pod in new:
            pod.wait("startupProbe")
            told = f"server {pod.number} does not belong to this ensemble: add it with reconfig"
            lab.wait_until(lambda pod=pod, told=told: pod.says(told), f"{pod.host} to be told so")
        _nobody_is_ready(cluster, 1, new)
        began = time.monotonic()
        for pod in new:
            line = adds[1].replace("server.4", f"server.{pod.number}")
            line = line.replace("zkraft-3", pod.host).replace("NAMESPACE", NAMESPACE)
            _reconfig(cluster, old, joining=line)
        for pod in new:
            pod.wait("readinessProbe")
        print(f"  {len(new)} more are ready {time.monotonic() - began:.1f} s after the first -add")
        _vote(cluster.pods, many)
        load.goes_on(old)
        assert load.broken(old) == broken, "clients lost their connections"
        for pod in reversed(old):
            _restart(load, [pod], [other for other in old if other is not pod])
        _is_one_ensemble(cluster)

        broken = load.broken(old)
        _reconfig(cluster, old, leaving=removes[1])
        _vote(old, few)
        load.goes_on(old)
        assert load.broken(old) == broken, "clients lost their connections"
        gone = cluster.scale(few)
        assert gone == new
        # All at the same time: for who is to go, Kubernetes does not wait.
        _restart(load, [*gone, old[-1]], old[:-1])
        for pod in reversed(old[:-1]):
            _restart(load, [pod], [other for other in old if other is not pod])
        assert load.expired() == 0, "a session was lost"
        print(f"  the longest that a client waited is {load.longest_ms():.0f} ms")
    _vote(old, few)
    _is_one_ensemble(cluster)


def _vote(pods: Sequence[Pod], count: int) -> None:
    """Waits until `zkraft status` shows so many voters in each of these pods."""
    lab.wait_until(lambda: all(pod.voters() == count for pod in pods), f"{count} voters", 20)


def _restart(load: _Load, pods: Sequence[Pod], others: Sequence[Pod]) -> None:
    """These pods go at the same time, and those that are to be there are made anew. (For how long
    they are left alone, and who is sent to them before: see `rolling_update`.)"""
    back = [pod for pod in pods if pod in load.cluster.pods]
    for pod in back:
        load.leaves(pod)
    broken = load.broken(others)
    with ThreadPoolExecutor(len(pods)) as executor:
        codes = list(executor.map(lambda pod: pod.delete(with_hook=False), pods))
    assert not any(codes), f"exit codes {codes}"
    for pod in pods:
        pod.withdraw()
    load.goes_on(others)
    for pod in back:
        since = pod.said()
        _come_back(pod, load)
        assert not pod.says(LINES_DIFFER, since), f"{pod.host} has other servers than the ensemble"
    load.goes_on([*others, *back])
    # Whoever is still elsewhere would be cut off with the next one.
    load.all_home()
    assert load.broken(others) == broken, "clients of other pods lost their connections"


def _come_back(pod: Pod, load: _Load) -> None:
    """Elsewhere, and its clients with it."""
    pod.move()
    pod.start()
    pod.publish()
    pod.wait("startupProbe")
    pod.wait("readinessProbe")
    load.comes_back(pod)


def _reconfig(cluster: Cluster, pods: Sequence[Pod], joining: str = "", leaving: str = "") -> None:
    """As the superuser, of one of these pods."""
    with cluster.client(*pods) as client:
        credentials = raw.text("digest") + raw.buffer(Scalable.SUPERUSER)
        reply = client.call(AUTH, struct.pack(">i", 0) + credentials)
        assert reply.error == 0, f"addauth: {reply.error}"
        reply = client.reconfig(joining, leaving)
        assert reply.error == 0, f"reconfig {joining}{leaving}: {reply.error}"


def _nobody_is_ready(cluster: Cluster, seconds: float, pods: Sequence[Pod] = ()) -> None:
    """For so long, of these pods or of all; and no pod would be restarted."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for pod in pods or cluster.pods:
            assert pod.running(), f"{pod.host} ended; its log ends:\n{pod.log_tail()}"
            assert not pod.is_ready(), f"{pod.host} is ready"
            assert pod.probe("livenessProbe"), f"{pod.host} is not live"
        time.sleep(0.2)


def _is_one_ensemble(cluster: Cluster) -> None:
    """What is written at one pod is there at all."""
    for pod in cluster.pods:
        with cluster.client(pod) as writer:
            path = created(writer.create("/seen-", pod.host.encode(), 2))
        for other in cluster.pods:
            with cluster.client(other) as reader:
                reader.sync()
                found = reader.get(path)
                assert found is not None and found[0] == pod.host.encode(), f"{path} at {other}"


# --- Clients --------------------------------------------------------------------------------------


class _Load:
    """A client that writes and one that is idle, at each pod. While a pod is away, they are
    elsewhere."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._folder = f"/load-{time.monotonic_ns()}"
        with cluster.client() as client:
            assert client.create(self._folder).error == 0
            paths = {pod.host: f"{self._folder}/{pod.host}" for pod in cluster.pods}
            for path in paths.values():
                assert client.create(path).error == 0
        self.writers = {pod.host: Writer(pod.place, paths[pod.host]) for pod in cluster.pods}
        self.idlers = {pod.host: Patron(pod.place) for pod in cluster.pods}
        for patron in self._patrons():
            patron.start()

    def leaves(self, pod: Pod) -> None:
        """The pod will be gone: its clients know the others."""
        for patron in self._of(pod):
            patron.route = [place for place in self.cluster.places() if place != pod.place]

    def comes_back(self, pod: Pod) -> None:
        """The pod is there again, maybe elsewhere, and so are its clients."""
        for patron in self._of(pod):
            patron.home = pod.place
            patron.route = [pod.place]

    def goes_on(self, pods: Sequence[Pod]) -> None:
        """Waits until the clients of these pods have written on."""
        moment = time.monotonic()

        def check() -> bool:
            wrong = [patron.wrong for patron in self._patrons() if patron.wrong]
            assert not wrong, wrong[0]
            writers = [self.writers[pod.host] for pod in pods]
            return all(writer.since(moment) >= WRITES_ENOUGH for writer in writers)

        lab.wait_until(check, "clients to be served", SERVED_SECONDS_MAX)

    def all_home(self) -> None:
        """Waits until all clients are at their pods, which are there."""
        at_home = lambda: all(patron.is_home() for patron in self._patrons())  # noqa: E731
        lab.wait_until(at_home, "clients to be at home", SERVED_SECONDS_MAX)

    def longest_ms(self) -> float:
        """The longest time between two acknowledgements of one client."""
        times = [list(writer.times) for writer in self.writers.values()]
        return max(gap_ms(each, each[0], each[-1]) for each in times)

    def gap_ms(self, pod: Pod, moment: float) -> float:
        times = list(self.writers[pod.host].times)
        return gap_ms(times, moment, times[-1])

    def broken(self, pods: Sequence[Pod]) -> int:
        """How often clients of these pods lost their connections."""
        return sum(patron.client.broken for pod in pods for patron in self._of(pod))

    def expired(self) -> int:
        return sum(patron.expired for patron in self._patrons())

    def stop(self) -> None:
        for patron in self._patrons():
            patron.stop()

    def check(self) -> None:
        """Nothing that was acknowledged is lost."""
        with self.cluster.client() as client:
            client.sync()
            for writer in self.writers.values():
                found = client.get(writer.path)
                assert found is not None, f"{writer.path} is gone"
                value = int(found[0])
                assert writer.acknowledged <= value <= writer.sent, f"{writer.path} is {value}"

    def _of(self, pod: Pod) -> list[Patron]:
        return [self.writers[pod.host], self.idlers[pod.host]]

    def _patrons(self) -> list[Patron]:
        return [*self.writers.values(), *self.idlers.values()]


@contextlib.contextmanager
def _load(cluster: Cluster) -> Iterator[_Load]:
    load = _Load(cluster)
    try:
        load.goes_on(cluster.pods)
        yield load
    finally:
        load.stop()
    load.check()
