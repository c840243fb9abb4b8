"""Gives a robot a certificate that lives for seconds, signed by the CA in a folder.

    short_lived.py CA_FOLDER NAME SECONDS AGE FOLDER

Writes NAME.crt and NAME.key into FOLDER. The certificate is AGE seconds old.
"""

import datetime as dt
import sys
from pathlib import Path

from cryptography import x509

from shadow import ca_folder, pki
from shadow.files import write_files


def main() -> None:
    ca, name, seconds, age, folder = sys.argv[1:]
    then = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=float(age))
    authority = ca_folder.load_authority(Path(ca), dt.datetime.now(dt.UTC))
    key, life = pki.new_key(), dt.timedelta(seconds=float(seconds))
    serial = x509.random_serial_number()
    certificate = pki.renew_robot(authority, name, key.public_key(), serial, life, then)
    pair = pki.Pair(certificate, key)
    write_files(ca_folder.leaf_files(Path(ca), Path(folder), name, pair), force=True)


main()
