"""Gives a robot a certificate that lives for seconds, signed by the CA in a folder.

    short_lived.py CA_FOLDER NAME SECONDS AGE FOLDER

Writes NAME.crt and NAME.key into FOLDER. The certificate is AGE seconds old.
"""

import datetime as dt
import sys
from pathlib import Path

from cryptography import x509

from shadow.ca import authority as authorities
from shadow.ca import folder as folders
from shadow.pki import keys
from shadow.pki.files import write_files


def main() -> None:
    ca, name, seconds, age, folder = sys.argv[1:]
    then = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=float(age))
    authority = folders.load_authority(Path(ca), dt.datetime.now(dt.UTC))
    key, life = keys.new_key(), dt.timedelta(seconds=float(seconds))
    serial = x509.random_serial_number()
    certificate = authorities.renew_robot(authority, name, key.public_key(), serial, life, then)
    pair = authorities.Pair(certificate, key)
    write_files(folders.leaf_files(Path(ca), Path(folder), name, pair), force=True)


main()
