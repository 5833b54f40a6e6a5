"""Places of the texts that are read or wait: their number bounds what requests can hold."""

import threading

from clada.errors import CladaError


class FullError(CladaError):
    """Error of a request for which there is no place."""


class Places:
    """Places for texts, each taken when a request comes and given back when its text has ended.

    Args:
        count: Number of places.
    """

    def __init__(self, count: int) -> None:
        self.count, self.taken = count, 0
        self._lock = threading.Lock()

    def take(self, texts: int) -> None:
        """Take places, all or none.

        Raises:
            FullError: There are not so many.
        """
        with self._lock:
            if self.taken + texts > self.count:
                raise FullError(
                    f"the server is full: {self.taken} of {self.count} texts are read or wait; try again later"
                )
            self.taken += texts

    def give_back(self, texts: int = 1) -> None:
        """Give places back."""
        with self._lock:
            self.taken -= texts
