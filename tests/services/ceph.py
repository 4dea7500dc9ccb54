"""A real S3 server: Ceph's gateway before a monitor and one disk that is memory, all of them on loopback and gone afterwards."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.programs import find_programs, free_port, listens, run, scratch_folder, started

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
public addr = 127.0.0.1
ms bind ipv6 = false
keyring = {folder}/keyring
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
run dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
pid file = {folder}/$name.pid
# A monitor alone agrees with itself at once: else each pool costs two seconds.
paxos propose interval = 0.02
paxos min wait = 0.01
mon tick interval = 1
# One copy of everything, on the only disk.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
osd crush chooseleaf type = 0
[mon.a]
mon data = {folder}/mon
mon addr = 127.0.0.1:{mon_port}
mon initial members = a
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {disk_bytes}
osd class load list = *
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw thread pool size = 32
rgw enable apis = s3, admin
rgw enable ops log = false
rgw enable usage log = false
rgw run sync thread = false
"""


@dataclass(frozen=True)
class S3Server:
    """Where an S3 server is, and the keys to it."""

    address: str
    key: str
    secret: str

    def environment(self) -> dict[str, str]:
        """Return the variables with which every S3 client finds it."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def ceph_gateway(disk_bytes: int = 2**31) -> Iterator[S3Server]:
    """Yield a running server with so much room.

    Raises
    ------
    UnavailableError
        If its programs are not here, or do not start.
    """
    ceph, mon, osd, gateway = find_programs("ceph", "ceph-mon", "ceph-osd", "radosgw")
    (admin,) = find_programs("radosgw-admin")
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        port, mon_port = free_port(), free_port()
        configured = ["-c", _configure(folder, port, mon_port, disk_bytes)]
        run([mon, *configured, "--mkfs", "-i", "a", "--monmap", f"{folder}/monmap", "--keyring", f"{folder}/keyring"])
        stack.enter_context(started([mon, *configured, "-i", "a", "-f"], folder)).wait_until(lambda: listens(mon_port))
        run([ceph, *configured, "osd", "create"])
        run([osd, *configured, "-i", "0", "--mkfs"])
        run([ceph, *configured, "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=here"])
        stack.enter_context(started([osd, *configured, "-i", "0", "-f"], folder))
        stack.enter_context(started([gateway, *configured, "-n", "client.rgw", "-f"], folder)).wait_until(lambda: listens(port))
        server = S3Server(f"http://127.0.0.1:{port}", "test-key", "secret-of-tests")
        user = ["user", "create", "--uid", "tests", "--display-name", "tests", "--access-key", server.key, "--secret-key", server.secret]
        run([admin, *configured, "-n", "client.rgw", *user])
        yield server


def _configure(folder: Path, port: int, mon_port: int, disk_bytes: int) -> str:
    """Write the configuration, keys and the map of monitors; return where the first is."""
    authtool, monmaptool = find_programs("ceph-authtool", "monmaptool")
    fsid, keyring = str(uuid.uuid4()), f"{folder}/keyring"
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    configuration = folder / "ceph.conf"
    configuration.write_text(CONFIGURATION.format(fsid=fsid, folder=folder, port=port, mon_port=mon_port, disk_bytes=disk_bytes))
    run([authtool, "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"])
    for name in ("client.admin", "osd.0", "client.rgw"):
        run([authtool, keyring, "--gen-key", "-n", name, "--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"])
    run([monmaptool, "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", f"{folder}/monmap"])
    return str(configuration)
