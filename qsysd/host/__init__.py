"""The steps that change or examine one host; the verbs in `operations` are made of them."""
