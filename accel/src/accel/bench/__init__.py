"""``accel bench``: every op and layer beside its peers, in one run, against measured ceilings.

offers.py      what plugins bring: Peer, Ceiling     peers.py       other libraries, op by op
sizes.py       decode, prefill, train, ...           case.py        an op at a size
products.py, rowwise.py, sequences.py                the cases of ops, in cases.py's table
layers.py, bert.py                                   those of layers
contest.py     who computes a case, and who cannot   agreement.py   whether they compute the same
timing.py      in rounds, paired                     ceilings.py    what the device can do at most
judging.py     one case, as figures                  run.py         all of them
command.py     the command line                      console.py     tables
roofline.py    a picture                             page.py        the page around it
"""
