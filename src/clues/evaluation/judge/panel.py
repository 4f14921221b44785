"""All inquiries of a run put to one endpoint, several at a time; what is answered stays answered."""

import asyncio
from collections.abc import Callable, Sequence

from clues.errors import UsageError
from clues.evaluation.judge.endpoint import Endpoint, EndpointError, RefusedError
from clues.evaluation.judge.prompts import Inquiry, UnreadableError, Verdict, read_verdict, repair


def ask_all(
    endpoint: Endpoint,
    inquiries: Sequence[Inquiry],
    *,
    on_rows: Callable[[int], None] = lambda _: None,
) -> list[Verdict]:
    """Put every inquiry to the endpoint; those answered before cost nothing.

    Raises:
        UsageError: more calls are needed than `max_calls`; none is made.
        EndpointError: the endpoint stopped answering. What was answered is stored.
    """
    limit = endpoint.settings.max_calls
    missing = sum(endpoint.stored(inquiry.messages) is None for inquiry in inquiries)
    if missing > limit:
        raise UsageError(
            f"evaluate.judge: {missing} calls are needed and max_calls is {limit}; none is made. "
            "Raise max_calls, or lower n_prompts."
        )
    return asyncio.run(_ask_all(endpoint, inquiries, on_rows))


async def _ask_all(
    endpoint: Endpoint, inquiries: Sequence[Inquiry], on_rows: Callable[[int], None]
) -> list[Verdict]:
    found: dict[int, Verdict] = {}
    waiting = iter(enumerate(inquiries))
    failed: list[EndpointError] = []

    async def work() -> None:
        # After a failure nobody begins anew, and what is under way may still be answered.
        while not failed and (following := next(waiting, None)):
            number, inquiry = following
            try:
                found[number] = await verdict(endpoint, inquiry)
            except EndpointError as error:
                failed.append(error)
                return
            on_rows(1)

    async with endpoint:
        await asyncio.gather(*(work() for _ in range(endpoint.settings.concurrency)))
    if failed:
        raise EndpointError(
            f"{failed[0]} {len(found)} of {len(inquiries)} verdicts are stored, and the same "
            "command goes on from there."
        )
    return [found[number] for number in range(len(inquiries))]


async def verdict(endpoint: Endpoint, inquiry: Inquiry) -> Verdict:
    """Ask, and ask once more where the reply cannot be read."""
    try:
        reply = await endpoint.reply(inquiry.messages, inquiry.mode)
        try:
            return Verdict(read_verdict(inquiry, reply))
        except UnreadableError as error:
            again = repair(inquiry, reply, str(error))
        reply = await endpoint.reply(again, inquiry.mode)
        return Verdict(read_verdict(inquiry, reply), repaired=True)
    except UnreadableError as error:
        return Verdict(None, problem=str(error))
    except RefusedError as error:
        return Verdict(None, problem=f"refused: {error}")
