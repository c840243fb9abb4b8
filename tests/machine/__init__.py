"""A machine to test on: Debian in QEMU, with systemd as PID 1 and a kernel that has TLS.

- ``setup`` installs what a host needs for it.
- ``image`` makes the root file system, once per recipe; ``recipe/`` is what goes into it. ``cache`` keeps it.
- ``qemu`` boots it and talks to it; ``package`` builds the Debian package and installs it there.
- ``fleet`` sets up a server and robots in it; ``bake`` bakes a robot's image and boots that.
- ``shell`` boots one for a person to look around in: ``python -m tests.machine.shell``.
- ``guest/`` holds what runs inside it.

May use: the standard library; of Shadow nothing. The tests run only with ``SHADOW_MACHINE=1``.
"""
