package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// Puts the blocks 0..count of so many bytes each, those of src/compare/blocks.rs.
func (node *node) generate(ctx context.Context, count uint64, size int64) (any, error) {
	raw := cid.V1Builder{Codec: cid.Raw, MhType: multihash.SHA2_256}
	for index := range count {
		data := generated(index, size)
		id, err := raw.Sum(data)
		if err != nil {
			return nil, err
		}
		block, err := blocks.NewBlockWithCid(data, id)
		if err != nil {
			return nil, err
		}
		if err := node.blocks.Put(ctx, block); err != nil {
			return nil, err
		}
	}
	return fields{}, nil
}

// SplitMix64 from a seed of its own for each block.
func generated(index uint64, size int64) []byte {
	state := index * 0xD6E8FEB86659FD93
	data := make([]byte, 0, size+8)
	for int64(len(data)) < size {
		state += 0x9E3779B97F4A7C15
		word := state
		word = (word ^ word>>30) * 0xBF58476D1CE4E5B9
		word = (word ^ word>>27) * 0x94D049BB133111EB
		data = binary.LittleEndian.AppendUint64(data, word^word>>31)
	}
	return data[:size]
}

// Gets every block over bitswap, in one session; none is kept. boxo has checked a block's hash before it comes out of here.
func (node *node) fetch(ctx context.Context, names []string) (any, error) {
	ids := make([]cid.Cid, 0, len(names))
	for _, name := range names {
		id, err := cid.Decode(name)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	began := time.Now()
	arriving, err := node.bitswap.GetBlocks(ctx, ids)
	if err != nil {
		return nil, err
	}
	count, received := 0, 0
	for block := range arriving {
		count++
		received += len(block.RawData())
	}
	took := time.Since(began)
	if count < len(ids) {
		return nil, fmt.Errorf("%d of %d blocks came: %w", count, len(ids), context.Cause(ctx))
	}
	return fields{"bytes": received, "nanoseconds": took.Nanoseconds()}, nil
}
