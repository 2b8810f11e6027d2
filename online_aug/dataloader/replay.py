"""The sequence of an earlier run again, from its ledger and the cache."""

from collections.abc import Callable
from pathlib import Path

from online_aug.dataloader.ledger import Ledger
from online_aug.dataloader.mixing import MixingSampler
from online_aug.dataloader.slots import Kind, Order, Slot
from online_aug.dataloader.supply import Supply
from online_aug.errors import UserError

LEDGER_FOLDER = "ledger"


class ReplaySampler(MixingSampler):
    """Fills every slot as the ledger says; nothing is drawn and nothing waited for."""

    is_replay = True

    def __init__(self, order: Order, supply: Supply, run: Path) -> None:
        """Serve again what `run` was served.

        Args:
            order: The global batches, as in that run.
            supply: The generated images of the same plan.
            run: Directory of that run.
        """
        super().__init__(order, supply)
        self._ledger = Ledger(run / LEDGER_FOLDER, batch_size=order.batch_size, steps=order.steps)

    def check(self, epochs: int) -> None:
        """Refuse a replay that could not be finished.

        Args:
            epochs: To be served.

        Raises:
            UserError: If the ledger does not cover them, or the cache lacks an image of them.
        """
        numbers = self._ledger.numbers(epochs)
        known = [n for n in numbers if n < len(self.supply.keys)]
        missing = len(numbers) - sum(self.supply.present(known))
        if missing:
            raise UserError(
                f"cache.path must hold every image that run.replay was served, {missing} of "
                f"{len(numbers)} are missing: fill the cache again, or name the one of that run"
            )

    def _filler(self) -> Callable[[int], list[Slot]]:
        rows = self._ledger.epoch(self.epoch)
        if rows["number"].max(initial=-1) >= len(self.supply.keys):
            raise UserError(
                "run.replay must have been served images of this plan, epoch "
                f"{self.epoch + 1} has others"
            )

        def fill(step: int) -> list[Slot]:
            return [
                Slot(self.epoch, position, int(index), Kind(int(kind)), int(number))
                for position in self._positions(step)
                for index, kind, number in [rows[position]]
            ]

        return fill
