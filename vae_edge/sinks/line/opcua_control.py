"""What clients of the OPC UA server may write that takes effect, or is refused with a status."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from vae_edge.errors import UsageError
from vae_edge.manifest import Thresholds
from vae_edge.platform.outside import printable
from vae_edge.sinks.line.rate_control import RateControl

if TYPE_CHECKING:
    from asyncua import Server, ua


def let_clients_set_the_rate(
    server: Server, node: ua.NodeId, control: RateControl, show: Callable[[Thresholds], Awaitable[None]]
) -> None:
    """Let writes of clients to a node set the false-alarm rate.

    A rate that cannot be set is refused with BadOutOfRange, with BadNotSupported where none can be (F1-optimal), and
    what is not one Double with BadTypeMismatch. A client that reads the nodes after its write has returned finds the
    new thresholds.

    Args:
        server: not started yet.
        node: the rate's.
        control: sets it.
        show: writes thresholds into the nodes.
    """
    from asyncua import ua
    from asyncua.crypto.permission_rules import User, UserRole
    from asyncua.server.address_space import AttributeService

    inner = server.iserver
    internal = User(role=UserRole.Admin)

    async def set_rate(value: ua.DataValue, user: User) -> ua.StatusCode:
        variant = value.Value
        if variant is None or variant.VariantType != ua.VariantType.Double or not isinstance(variant.Value, float):
            return ua.StatusCode(ua.StatusCodes.BadTypeMismatch)
        try:
            thresholds = control.set(variant.Value, _who(inner, user))
        except UsageError:
            none_can_be = control.smallest is None
            return ua.StatusCode(ua.StatusCodes.BadNotSupported if none_can_be else ua.StatusCodes.BadOutOfRange)
        await show(thresholds)
        return ua.StatusCode()

    class Controlled(AttributeService):  # type: ignore[misc]  # asyncua is untyped
        """The service that clients' writes come to; the server's own do not."""

        async def write(self, params: ua.WriteParameters, user: User = internal) -> list[ua.StatusCode]:
            results: list[ua.StatusCode] = []
            for written in params.NodesToWrite:
                if written.NodeId == node and written.AttributeId == ua.AttributeIds.Value:
                    results.append(await set_rate(written.Value, user))
                else:
                    results += await super().write(ua.WriteParameters(NodesToWrite=[written]), user)
            return results

    inner.attribute_service = Controlled(inner.aspace)


def _who(inner: Any, user: Any) -> str:
    """Return a client's user name and address, for the log."""
    sessions = getattr(inner, "_external_sessions", {}).values()
    peer = next((session.name for session in sessions if session.user is user), None)
    where = f" at {peer[0]}" if isinstance(peer, tuple) and peer else ""
    return f"the OPC UA client {printable(str(user.name))[:100]!r}{where}"
