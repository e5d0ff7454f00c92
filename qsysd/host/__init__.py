"""Steps that change or examine one host. The verbs in `operations` consist of them."""
