export { TrackBits } from './track-bits.ts';
export { type TrackRun, TrackSet } from './track-set.ts';
