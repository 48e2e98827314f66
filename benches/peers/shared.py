"""Prompt tuning in plain torch with the work saved that softprompt saves by its algorithm, over the same transformers model.

- The prompt's rows go through the model once, not once for each example: no later token changes them.
- Examples lie one after the other without padding. In the attention alone they are padded to the longest: that is faster
  on a CPU than one masked product over the whole stream.
- The last token of an example is only predicted, so it is no row.
- In the last layer all rows have keys and values, and only the row that predicts the label has anything else; only that
  row has logits.

So what is left between this and softprompt is the engine. One label token for each example, the last.
"""

import torch
import torch.nn.functional as F


class SharedPrompt:
    """The loss of a batch as a function of the prompt `[P, d]`."""

    def __init__(self, model, rows: list[tuple[list[int], list[int]]], prompt_rows: int):
        assert all(len(target) == 1 for _, target in rows), "one label token for each example"
        lengths = torch.tensor([len(inputs) for inputs, _ in rows])
        self.prompt_rows, self.examples, self.longest = prompt_rows, len(rows), int(lengths.max())
        self.labels = torch.tensor([target[0] for _, target in rows])
        ids = torch.tensor([token for inputs, _ in rows for token in inputs])
        ends = lengths.cumsum(0)
        # The stream's row that predicts each label.
        self.scored = prompt_rows + ends - 1

        steps = torch.arange(self.longest)
        is_real = steps < lengths[:, None]
        places = (ends - lengths)[:, None] + steps
        # Each example's places in the stream, padded with place 0; and back, places among the padded. None: they are the same.
        self.padded = None if bool(is_real.all()) else torch.where(is_real, places, 0).flatten()
        self.packed = None if self.padded is None else is_real.flatten().nonzero()[:, 0]

        # Padding stands last, so that no real query sees it by causality alone.
        causal = torch.ones(self.longest, self.longest, dtype=torch.bool).tril()
        self.mask = F.pad(causal, (prompt_rows, 0), value=True)
        self.last_mask = F.pad(is_real, (prompt_rows, 0), value=True)[:, None, None]

        positions = torch.cat([torch.arange(prompt_rows), *(prompt_rows + steps[:length] for length in lengths)])
        self.model = model
        is_gpt2 = model.config.model_type == "gpt2"
        self.layer = self.gpt2_layer if is_gpt2 else self.llama_layer
        with torch.no_grad():
            self.text = model.get_input_embeddings()(ids)
            if is_gpt2:
                self.layers, self.norm = model.transformer.h, model.transformer.ln_f
                self.added = model.transformer.wpe(positions)
                self.heads = self.key_heads = model.config.n_head
            else:
                self.layers, self.norm, self.added = model.model.layers, self.rms(model.model.norm), None
                self.heads, self.key_heads = model.config.num_attention_heads, model.config.num_key_value_heads
                cos, sin = model.model.rotary_emb(self.text, positions[None])
                self.cos, self.sin = cos[0][:, None], sin[0][:, None]

    def loss(self, prompt: torch.Tensor) -> torch.Tensor:
        x = torch.cat([prompt, self.text])
        if self.added is not None:
            x = x + self.added
        for layer in self.layers[:-1]:
            x = self.layer(layer, x, None)
        x = self.layer(self.layers[-1], x, self.scored)
        return F.cross_entropy(self.model.lm_head(self.norm(x)), self.labels)

    # `kept` are the rows that the layer's output has; None is all.

    def llama_layer(self, layer, x, kept):
        attention = layer.self_attn
        h = self.rms(layer.input_layernorm)(x)
        x, wanted = (x, h) if kept is None else (x[kept], h[kept])
        q = self.rotate(attention.q_proj(wanted).unflatten(-1, (self.heads, -1)), kept)
        k = self.rotate(attention.k_proj(h).unflatten(-1, (self.key_heads, -1)), None)
        v = attention.v_proj(h).unflatten(-1, (self.key_heads, -1))
        x = x + attention.o_proj(self.attend(q, k, v, kept))
        return x + layer.mlp(self.rms(layer.post_attention_layernorm)(x))

    def gpt2_layer(self, layer, x, kept):
        h, attention = layer.ln_1(x), layer.attn
        if kept is None:
            q, k, v = attention.c_attn(h).unflatten(-1, (3, self.heads, -1)).unbind(1)
        else:
            width = x.shape[1]
            weight, bias = attention.c_attn.weight, attention.c_attn.bias
            q = torch.addmm(bias[:width], h[kept], weight[:, :width]).unflatten(-1, (self.heads, -1))
            k, v = torch.addmm(bias[width:], h, weight[:, width:]).unflatten(-1, (2, self.heads, -1)).unbind(1)
            x = x[kept]
        x = x + attention.c_proj(self.attend(q, k, v, kept))
        return x + layer.mlp(layer.ln_2(x))

    def rms(self, norm):
        return lambda x: F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)

    def rotate(self, x, kept):
        cos, sin = (self.cos, self.sin) if kept is None else (self.cos[kept], self.sin[kept])
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def attend(self, q, k, v, kept):
        """q `[rows, heads, size]`, k and v `[all rows, key heads, size]`; gives `[rows, heads · size]`."""
        count = self.prompt_rows
        many = self.heads != self.key_heads
        keys, values = self.by_example(k), self.by_example(v)
        if kept is not None:
            out = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=self.last_mask, enable_gqa=many)
            return out.flatten(1)
        of_prompt = (part[:count].transpose(0, 1)[None] for part in (q, k, v))
        prompt = F.scaled_dot_product_attention(*of_prompt, is_causal=True, enable_gqa=many)
        queries = self.pad(q[count:]).transpose(1, 2)
        text = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self.mask, enable_gqa=many)
        text = text.transpose(1, 2).flatten(0, 1)
        text = text if self.packed is None else text[self.packed]
        return torch.cat([prompt[0].transpose(0, 1), text]).flatten(1)

    def by_example(self, x):
        """The prompt's rows, then the example's own: `[examples, heads, rows, size]`."""
        prompt = x[: self.prompt_rows].expand(self.examples, -1, -1, -1)
        return torch.cat([prompt, self.pad(x[self.prompt_rows :])], 1).transpose(1, 2)

    def pad(self, x):
        """Text rows as `[examples, longest, heads, size]`."""
        x = x if self.padded is None else x[self.padded]
        return x.unflatten(0, (self.examples, self.longest))
