#!/usr/bin/env python3
"""Write a mailbox as mbox: python3 to_mbox.py /var/lib/relay/mail/example.org/bob bob.mbox"""

import mailbox
import sys

maildir = mailbox.Maildir(sys.argv[1], create=False)
target = mailbox.mbox(sys.argv[2])
folders = [maildir, *map(maildir.get_folder, maildir.list_folders())]
for folder in folders:
    for message in folder:
        target.add(message)
target.close()
