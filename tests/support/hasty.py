"""shadow-server for which one robot is too many, and a second is long enough to see that."""

import functools

from shadow.cli import server
from shadow.fleet import leaving
from shadow.fleet.balance import Balance, Terms

TERMS = Terms(least=1, calm=0.1, rest=0.1, settled=0.0)

if __name__ == "__main__":
    vars(leaving)["Balance"] = functools.partial(Balance, TERMS)
    raise SystemExit(server.main())
