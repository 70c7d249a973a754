#!/bin/sh
# The dense models of docs/bench/accuracy.md, from DINOv2's ViT-S/14:
# tools/train_studies.sh WEIGHTS [DEVICE]
# After `python -m tools.fashion_mnist.prepare` and `python -m tools.prepare_elpv --output build/elpv`.
set -eu
start=$1 device=${2:-cpu}

# DATA SEED FROM TO, and more flags of the trainer
train() {
    data=$1 seed=$2 from=$3 to=$4
    shift 4
    python -m tools.train_dense --model vit_small_patch14_dinov2 --data-dir "$data" --seed "$seed" \
        --initial-checkpoint "$from" --output "$to" --freeze-blocks 2 --device "$device" "$@"
}

mkdir -p build/fm build/elpv_vit_small

# Small images first, then large ones of which a quarter of the patches stays, then whole ones.
fm() { train build/fashion_mnist "$@" --batch-size 128; }
fm 0 "$start" build/fm/1.safetensors --stages 98:3.5,196:0.45 --lr 3e-4
fm 1 build/fm/1.safetensors build/fm/2.safetensors --stages 196/0.75:0.85,196:0.04 --lr 1.5e-4 \
    --ema-decay 0.99
fm 2 build/fm/2.safetensors build/fm/3.safetensors --stages 196/0.75:2.7,196:0.05 --lr 3e-4 \
    --save last
fm 3 build/fm/3.safetensors build/fm/4.safetensors --stages 196:0.25 --lr 1.5e-4 \
    --ema-decay 0.98
fm 4 build/fm/4.safetensors build/fm/dense.safetensors --stages 196:0.25 --lr 1.5e-4 \
    --ema-decay 0.98

# A lesser one in about 40 CPU minutes, whose weights are in the repository: the model above is not kept.
brief() { train build/fashion_mnist "$@" --amp-dtype float32; }
brief 0 "$start" build/fm/brief1.safetensors --stages 98:0.25 --lr 3e-4
brief 1 build/fm/brief1.safetensors build/fm/brief2.safetensors --stages 196/0.6:0.04,196:0.012 \
    --lr 1.5e-4 --batch-size 32 --ema-decay 0.98
packed=build/fm/added.safetensors  # as models/fashion_mnist_vit_small
python -m tools.low_rank pack build/fm/brief2.safetensors --base "$start" --rank 16 --output $packed
python -m tools.low_rank unpack $packed --base "$start" --output build/fm/brief.safetensors

# Half of the patches stays, then all. The second run's weights, packed, are in the repository:
# tools.low_rank unpack makes the model without the training.
out=build/elpv_vit_small
elpv() {
    train build/elpv "$@" --batch-size 32 --symmetry mirror --annotations build/elpv/labels.csv \
        --smoothing 0.02 --ema-decay 0.99
}
elpv 0 "$start" $out/1.safetensors --stages 112:6,224/0.5:9,224:2 --lr 2e-4 --drop-path 0.1
elpv 1 $out/1.safetensors $out/2.safetensors --stages 224:11 --lr 3e-4 --drop-path 0.05 \
    --freeze-blocks 4
packed=$out/added.safetensors
python -m tools.low_rank pack $out/2.safetensors --base "$start" --rank 16 --output $packed
python -m tools.low_rank unpack $packed --base "$start" --output $out/dense.safetensors
