"""``accel bench``: every op and layer beside its peers, in one run, against measured ceilings.

offers.py      what plugins bring: Peer, Ceiling      peers.py       other libraries, op by op
sizes.py       decode, prefill, train, ...            case.py        an op at a size
products.py, rowwise.py, sequences.py, cases.py       the cases of every op
contest.py     who computes a case, and who cannot    agreement.py   whether they compute the same
timing.py      in rounds, paired                      ceilings.py    what the device can do at most
run.py         figures as data
"""
