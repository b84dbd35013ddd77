"""For people who use Auto3DSeg elsewhere: MONAI's ``DataAnalyzer`` with right numbers.

>>> from cellmap_core.datastats.analyzer import DataAnalyzer
>>> report = DataAnalyzer("datalist.json", dataroot="/data").get_all_case_stats()
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellmap_core.datastats.case import Bins, plain_statistics
from cellmap_core.datastats.reduce import summarize_plain
from cellmap_core.datastats.reports import write_report
from cellmap_core.errors import CellmapError, DatalistError, OptionError, StatisticsError
from cellmap_core.models import Failure, Mapper, serial
from cellmap_core.paths import expand_path

logger = logging.getLogger(__name__)

_HIST_RANGE = (-500.0, 500.0)


class DataAnalyzer:
    """Statistics of all cases of an Auto3DSeg datalist, as MONAI's class of this name.

    Any NIfTI files will do: plain label volumes without a label table, labels of any integer
    type, images of several channels, no labels at all. A case that cannot be analysed is
    named in the log and in ``failures``; the rest is analysed.

    Parameters
    ----------
    datalist : str, Path or dict
        A JSON file or its content: lists of ``{image, label}`` by key.
    dataroot : str or Path
        Where the list's relative paths start.
    output_path : str or Path
        The report; the cases go beside it as ``…_by_case``. Empty writes nothing.
    average : bool
        Summaries are over all channels together; False is refused.
    do_ccp : bool
        Whether to find the connected components of each label.
    device, worker
        Taken and not needed.
    image_key, label_key : str
        Names in the list's entries; ``label_key=None`` analyses the images alone.
    hist_bins, hist_range
        Number of bins and range of an intensity histogram, one for all channels or a list with
        one for each; 0 bins make none.
    fmt : str
        ``yaml`` or ``json``.

    Attributes
    ----------
    failures : tuple of Failure
        After ``get_all_case_stats``: the cases without statistics, and why.
    """

    def __init__(
        self,
        datalist: str | Path | dict[str, Any],
        dataroot: str | Path = "",
        output_path: str | Path = "./datastats.yaml",
        average: bool = True,
        do_ccp: bool = False,
        device: Any = "cpu",
        worker: int = 4,
        image_key: str = "image",
        label_key: str | None = "label",
        hist_bins: list[int] | int | None = 0,
        hist_range: Sequence[Any] | None = None,
        fmt: str = "yaml",
    ) -> None:
        if not average:
            raise OptionError("average=False", "True: summaries are over all channels together")
        if fmt not in ("yaml", "json"):
            raise OptionError(f"fmt={fmt!r}", "yaml or json")
        self._datalist = datalist if isinstance(datalist, dict) else expand_path(datalist)
        self._root = expand_path(dataroot)
        self._output = str(output_path) and str(expand_path(output_path))
        self._do_ccp, self._fmt = do_ccp, fmt
        self._image_key = image_key
        self._label_key = None if label_key in (None, "None") else label_key
        self._bins = _bins(hist_bins, hist_range)
        self.failures: tuple[Failure, ...] = ()

    def get_all_case_stats(self, key: str = "training", mapper: Mapper = serial) -> dict[str, Any]:
        """Analyse the cases of one list and write both reports.

        Parameters
        ----------
        key : str
            Name of the list.
        mapper : Mapper
            Runs a function over the cases, in their order.

        Returns
        -------
        dict
            ``stats_summary`` and ``stats_by_cases``.

        Raises
        ------
        DatalistError
            The list is missing or no list of images (and labels).
        StatisticsError
            Not one case could be analysed.
        """
        outcomes = mapper(self._statistics, self._cases(key))
        self.failures = tuple(o for o in outcomes if isinstance(o, Failure))
        for failure in self.failures:
            logger.warning("%s has no statistics: %s", failure.item, failure.reason)
        cases = [o for o in outcomes if not isinstance(o, Failure)]
        if not cases:
            first = f", the first because {self.failures[0].reason}" if self.failures else ""
            raise StatisticsError(f"none of {len(outcomes)} cases has statistics{first}")
        summary = summarize_plain(cases)
        if self._output:
            self._write(summary, cases)
        return {"stats_summary": summary, "stats_by_cases": cases}

    def _cases(self, key: str) -> list[tuple[Path, Path | None]]:
        document = self._datalist
        if not isinstance(document, dict):
            try:
                document = json.loads(document.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DatalistError(
                    f"{self._datalist} cannot be read ({error})", "a JSON datalist"
                ) from error
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list) or not rows:
            raise DatalistError(f"the datalist has no list {key}", "entries {image, label}")
        return [self._case(f"{key} entry {number}", row) for number, row in enumerate(rows)]

    def _case(self, where: str, row: Any) -> tuple[Path, Path | None]:
        keys = [k for k in (self._image_key, self._label_key) if k]
        if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in keys):
            raise DatalistError(f"{where} is {row!r:.80}", f"one file each as {', '.join(keys)}")
        label = (
            self._root / expand_path(row[self._label_key], self._root) if self._label_key else None
        )
        return self._root / expand_path(row[self._image_key], self._root), label

    def _statistics(self, case: tuple[Path, Path | None]) -> dict[str, Any] | Failure:
        try:
            return plain_statistics(*case, self._do_ccp, self._bins)
        except (CellmapError, OSError, ValueError) as error:
            return Failure(item=str(case[0]), reason=" ".join(str(error).split()))
        except Exception as error:
            # One case must not end the others, whatever a reader comes up with.
            logger.exception("%s failed unexpectedly", case[0])
            return Failure(item=str(case[0]), reason=f"unexpected {error!r}")

    def _write(self, summary: dict[str, Any], cases: list[dict[str, Any]]) -> None:
        # MONAI's names of the two files.
        by_case = self._output.replace(f".{self._fmt}", f"_by_case.{self._fmt}")
        if by_case == self._output:
            by_case += f".by_case.{self._fmt}"
        write_report(Path(self._output), summary, [], self._fmt)
        write_report(Path(by_case), summary, cases, self._fmt)


def _bins(number: list[int] | int | None, range_: Sequence[Any] | None) -> tuple[Bins, ...]:
    """A histogram for each channel, or one for all, as MONAI's parameters say it."""
    numbers = number if isinstance(number, list) else [100 if number is None else number]
    if numbers == [0]:
        return ()
    ranges = list(range_ or [_HIST_RANGE])
    if not all(isinstance(r, list | tuple) for r in ranges):
        ranges = [ranges]
    if len(ranges) != len(numbers):
        raise OptionError(f"{len(numbers)} hist_bins and {len(ranges)} hist_range", "as many")
    try:
        made = tuple(
            Bins(int(n), float(low), float(high))
            for n, (low, high) in zip(numbers, ranges, strict=True)
        )
    except (TypeError, ValueError) as error:
        raise OptionError(f"hist_range={range_!r}", "[lowest, highest]") from error
    if bad := [b for b in made if b.number < 1 or b.low >= b.high]:
        raise OptionError(f"a histogram of {bad[0]}", "at least one bin, lowest below highest")
    return made
