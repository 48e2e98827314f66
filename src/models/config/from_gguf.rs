//! The sizes of a model from a GGUF file's metadata.

use super::{EncoderDecoderConfig, Family, ModelConfig, RopeScaling, UNLIMITED};
use crate::error::{Error, Place, Result};
use crate::ops::Activation;
use crate::weights::{Weights, gguf};

/// What the metadata of an opened GGUF file says, and its tensors where that says nothing.
pub(super) fn from_gguf(metadata: &gguf::Metadata, weights: &Weights) -> Result<ModelConfig> {
    let place = |key: &str| Place::file(metadata.path()).of(key);
    let architecture = metadata.str("general.architecture")?.unwrap_or_default();
    let family = Family::named(architecture).ok_or_else(|| {
        Error::input(place("general.architecture"), "llama, qwen2, gpt2 or t5", format!("{architecture:?}"))
    })?;
    let is_t5 = family == Family::T5;
    let key = |name: &str| format!("{architecture}.{name}");
    let size = |name: &str| -> Result<Option<usize>> {
        Ok(metadata.u64(&key(name))?.map(|value| usize::try_from(value).unwrap_or(usize::MAX)))
    };
    let need = |name: &str| size(name)?.ok_or_else(|| Error::input(place(&key(name)), "a number", "nothing"));
    let number = |name: &str, default: f64| Ok::<_, Error>(metadata.f64(&key(name))?.unwrap_or(default));
    if let Some(experts) = size("expert_count")?.filter(|&count| count > 0) {
        return Err(Error::input(place(&key("expert_count")), "no experts", experts.to_string())
            .hint("this model computes something that softprompt does not"));
    }

    let (hidden_size, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let head_dim = size("attention.key_length")?.unwrap_or(hidden_size / heads.max(1));
    if let Some(rotated) =
        size("rope.dimension_count")?.filter(|&rotated| rotated != head_dim && family != Family::Gpt2 && !is_t5)
    {
        return Err(Error::input(place(&key("rope.dimension_count")), head_dim.to_string(), rotated.to_string())
            .hint("partial rotation is not supported"));
    }
    let rope_scaling = match metadata.str(&key("rope.scaling.type"))? {
        None | Some("none") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: number("rope.scaling.factor", 1.0)? },
        Some(other) => {
            return Err(Error::input(place(&key("rope.scaling.type")), "none or linear", format!("{other:?}")));
        }
    };
    let embedding = weights.get("token_embd.weight")?;
    let has = |name: &str| weights.find(name).is_some();
    let is_gpt2 = family == Family::Gpt2;
    let layers = need("block_count")?;
    // A T5 says neither that its MLP has a gate nor that its head is the table: its tensors do. Of the latter kind are those
    // of v1.0, whose outputs are scaled.
    let is_gated = if is_t5 { has("enc.blk.0.ffn_gate.weight") } else { !is_gpt2 };
    let is_tied = !has("output.weight");
    let encoder_decoder = if is_t5 {
        Some(EncoderDecoderConfig {
            num_decoder_layers: size("decoder_block_count")?.unwrap_or(layers),
            decoder_start_token_id: size("decoder_start_token_id")?.unwrap_or(0) as u32,
            relative_attention_num_buckets: size("attention.relative_buckets_count")?.unwrap_or(32),
            // Not in the format, whose programs have this number.
            relative_attention_max_distance: 128,
            scale_decoder_outputs: is_tied,
        })
    } else {
        None
    };
    Ok(ModelConfig {
        family,
        hidden_size,
        intermediate_size: need("feed_forward_length")?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        vocab_size: embedding.shape().first().copied().unwrap_or(0),
        max_position_embeddings: if is_t5 { UNLIMITED } else { need("context_length")? },
        norm_epsilon: if is_gpt2 {
            number("attention.layer_norm_epsilon", 1e-5)?
        } else {
            number("attention.layer_norm_rms_epsilon", 1e-6)?
        },
        activation: match (is_gpt2 || (is_t5 && is_gated), is_t5) {
            (true, _) => Activation::GeluTanh,
            (false, true) => Activation::Relu,
            (false, false) => Activation::Silu,
        },
        is_gated,
        rope_theta: number("rope.freq_base", 10_000.0)?,
        rope_scaling,
        tie_word_embeddings: is_tied,
        qkv_bias: is_gpt2 || has("blk.0.attn_q.bias"),
        output_bias: is_gpt2 || has("blk.0.attn_output.bias"),
        mlp_bias: is_gpt2 || has("blk.0.ffn_up.bias"),
        encoder_decoder,
    })
}
