"""One connection between two workers over which tensors travel.

A link is opened, used by one transfer at a time, and closed. What goes wrong once breaks it for
ever: a broken link refuses every call at once and never recovers, the two workers open another.
Breaking and closing both make the link quiet: when `close` has returned, nothing writes into a
buffer that was given to `post_receive`, so the blocks behind it may be used again.

Sizes are not negotiated here. Gloo aborts the receiving process on a message longer than the posted
tensor, so both ends must know what the other posts before they post; `transfer` sees to that.
"""

import threading
from collections.abc import Callable, Sequence

import torch

from twinflow.parallel.links.config import LinkConfig, LinkPeer
from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.groups import LINK_GROUPS
from twinflow.parallel.links.groups.base import MESSAGE_TAGS, LinkGroup, Posted, failure_reason
from twinflow.parallel.links.rendezvous import LinkStore, confirm, describe, meet
from twinflow.parallel.links.store import StoreBackend
from twinflow.protos.errors import LinkError


class Link:
    """An open connection to one peer. Thread-safe; made by `Link.open`."""

    def __init__(
        self,
        config: LinkConfig,
        group: LinkGroup,
        store: LinkStore,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._group = group
        self._store: LinkStore | None = store  # torch itself does not keep it
        self._on_close = on_close
        self._closing = threading.Lock()
        self._state = threading.Condition()
        self._in_calls = 0
        self._posted: set[Posted] = set()
        self._next_tag = 0
        self._broken: str | None = None
        self._closed = False

    @classmethod
    def open(
        cls,
        config: LinkConfig,
        store: StoreBackend,
        on_close: Callable[[], None] | None = None,
    ) -> "Link":
        """Meet the peer through `store` and connect to it. Blocks; both ends must call it.

        Args:
            config: this end.
            store: the store of this link, here or at the peer.
            on_close: called once when the link is closed, or cannot be opened: the store is not
                needed any more.

        Raises:
            LinkError: no connection within `config.deadline_s`; names the peer and the phase.
        """
        deadline = Deadline.after(config.deadline_s)
        try:
            return _connect(config, store, deadline, on_close)
        except BaseException:  # nobody will close what was never returned
            if on_close is not None:
                on_close()
            raise

    @property
    def link_id(self) -> str:
        """The id that both ends know the link by."""
        return self._config.link_id

    @property
    def peer(self) -> LinkPeer:
        """Who is at the other end."""
        return self._config.peer

    @property
    def broken(self) -> bool:
        """Whether the link failed; it will never work again."""
        return self._broken is not None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def reserve_tags(self, count: int) -> int:
        """Take `count` tags that no message of this link had before; returns the first.

        Both ends reserve the same counts in the same order, once for each transfer. A message of an
        earlier transfer can then never match a receive of a later one.

        Raises:
            LinkError: the link is broken or closed, or has no tags left and must be replaced.
        """
        with self._state:
            self._require_usable("reserve tags")
            first = self._next_tag
            if count < 1 or first + count > MESSAGE_TAGS:
                raise LinkError(f"{describe(self._config)}: no {count} tags left, open another")
            self._next_tag = first + count
            return first

    def send(
        self, tensors: Sequence[torch.Tensor], first_tag: int, deadline_s: float | None = None
    ) -> None:
        """Send each tensor as one message and block until the peer has received all of them.

        The peer must have a receive posted for each, of the same size. Batches are sent in the
        order in which the peer waits for them. The tensors must not change meanwhile.

        Args:
            tensors: contiguous, on the link's device.
            first_tag: tag of the first message; those of the others follow it.
            deadline_s: seconds for all of them; the link's own deadline if None.

        Raises:
            LinkError: the link broke, or was broken or closed before.
        """
        self._check_messages(tensors, first_tag)
        deadline = self._deadline(deadline_s)
        posted = self._run("send", lambda: self._group.post_sends(tensors, first_tag), deadline)
        self._finish("send", posted, deadline)

    def post_receive(self, tensors: Sequence[torch.Tensor], first_tag: int) -> "PendingReceive":
        """Let the peer send into these tensors, one message each. Does not block.

        From now until the returned receive is done, or this link is closed, the tensors belong to
        the link.

        Raises:
            LinkError: the link broke, or was broken or closed before.
        """
        self._check_messages(tensors, first_tag)
        post = self._group.post_receives
        posted = self._run("receive", lambda: post(tensors, first_tag), self._deadline(None))
        return PendingReceive(self, posted)

    def receive(
        self, tensors: Sequence[torch.Tensor], first_tag: int, deadline_s: float | None = None
    ) -> None:
        """Post the receives and wait for them.

        Raises:
            LinkError: the link broke, or was broken or closed before.
        """
        self.post_receive(tensors, first_tag).wait(deadline_s)

    def close(self) -> None:
        """Break the connection and give back its sockets and threads. Idempotent.

        Wakes whoever waits on the link. When it has returned, the link is quiet.
        """
        with self._closing:
            if self._closed:
                return
            with self._state:
                self._closed = True
                self._group.abort()
                # Waiters were woken by the abort and only have to leave.
                self._state.wait_for(lambda: self._in_calls == 0)
                posted = tuple(self._posted)
                self._posted.clear()
            for operations in posted:
                operations.discard()
            self._group.release()
            self._store = None
            if self._on_close is not None:
                self._on_close()

    def check_integrity(self) -> None:
        """Check that a closed link holds nothing.

        Raises:
            RuntimeError: it does.
        """
        with self._state:
            if self._closed and (self._posted or self._in_calls or self._store is not None):
                raise RuntimeError(f"{describe(self._config)} is closed and holds resources")

    def _run(self, phase: str, post: Callable[[], Posted], deadline: Deadline) -> Posted:
        """Post something and remember it."""
        with self._state:
            self._require_usable(phase)
            try:
                posted = post()
            except RuntimeError as error:
                reason = failure_reason(error, deadline)
            else:
                self._posted.add(posted)
                return posted
        raise self._break(phase, reason)

    def _finish(self, phase: str, posted: Posted, deadline: Deadline) -> None:
        """Wait for something posted, then forget it."""
        with self._state:
            self._require_usable(phase)
            self._in_calls += 1
        failure: LinkError | None = None
        try:
            posted.wait(deadline)
        except RuntimeError as error:
            failure = self._break(phase, failure_reason(error, deadline))
        finally:
            with self._state:
                self._in_calls -= 1
                if failure is None:
                    self._posted.discard(posted)
                self._state.notify_all()
        if failure is not None:
            raise failure

    def _break(self, phase: str, reason: str) -> LinkError:
        """Mark the link broken and make it quiet; returns the error to raise."""
        if self._closed:
            reason = "the link was closed meanwhile"
        error = LinkError(f"{describe(self._config)}: {phase} failed: {reason}")
        if self._broken is None:
            self._broken = error.message
        self._group.abort()
        return error

    def _require_usable(self, phase: str) -> None:
        if self._closed:
            raise LinkError(f"{describe(self._config)}: {phase} on a closed link")
        if self._broken is not None:
            raise LinkError(f"{phase} on a broken link; it broke when: {self._broken}")

    def _deadline(self, deadline_s: float | None) -> Deadline:
        return Deadline.after(self._config.deadline_s if deadline_s is None else deadline_s)

    def _check_messages(self, tensors: Sequence[torch.Tensor], first_tag: int) -> None:
        if not tensors or first_tag < 0 or first_tag + len(tensors) > MESSAGE_TAGS:
            raise ValueError(f"{len(tensors)} messages from tag {first_tag}")
        for tensor in tensors:
            if not tensor.is_contiguous() or tensor.numel() == 0:
                raise ValueError(f"a message is one piece of memory, not {tuple(tensor.shape)}")
            if tensor.device.type != self._group.device_type:
                raise ValueError(f"{self._config.backend} cannot move a {tensor.device} tensor")


class PendingReceive:
    """Receives that are posted and not awaited yet."""

    def __init__(self, link: Link, posted: Posted) -> None:
        self._link = link
        self._posted = posted

    def wait(self, deadline_s: float | None = None) -> None:
        """Block until every message has arrived, and let the peer's `send` return; call it once.

        Receives are awaited in the order in which the peer sends.

        Args:
            deadline_s: seconds for all of them; the link's own deadline if None.

        Raises:
            LinkError: the link broke, or was broken or closed before.
        """
        self._link._finish("receive", self._posted, self._link._deadline(deadline_s))


def _connect(
    config: LinkConfig,
    backend: StoreBackend,
    deadline: Deadline,
    on_close: Callable[[], None] | None,
) -> Link:
    meet(config, backend, deadline)
    store = LinkStore(backend, describe(config), config.deadline_s)
    try:
        group = LINK_GROUPS[config.backend].connect(config, store, deadline)
    except RuntimeError as error:
        reason = failure_reason(error, deadline)
    else:
        try:
            confirm(config, backend, deadline)
        except BaseException:  # nobody will close what was never returned
            group.abort()
            group.release()
            raise
        return Link(config, group, store, on_close)
    raise LinkError(f"{describe(config)}: connect failed: {reason}")
