"""From prompts to answers.

generate.py   a hybridized model's ``generate``, in waves
request.py    what it was asked                    prompts.py   to what, and which are alike
decoding.py   the loop over tokens                 replay.py    a step recorded once and replayed
sampling.py   reproducible random tokens           rollout.py   what it gives back
fallback.py   transformers' own ``generate``    prefixes.py  what the cache holds of prompts
company.py    processes that share the model       together.py  its parameters meanwhile
shared.py     ranks that share its products        offers.py    what each of them brings
"""
