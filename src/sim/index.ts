export { LossyDisk, type LossyDiskOptions } from './lossy-disk.ts';
export {
  contentOf as sectorsOf,
  type ModelChange,
  type ModelImage,
  ModelVolume,
  SECTOR_BYTES,
} from './model.ts';
export { mountReflinkDisk } from './reflink-disk.ts';
export { Scheduler, turns, within } from './scheduler.ts';
export { makeScratchDirectory } from './scratch.ts';
export {
  labelled,
  labelOf,
  labelsOf,
  makeTestVolume,
  TEST_TRACK_BYTES,
  type TestVolume,
  type TestVolumeOptions,
  writeLabel,
} from './test-volume.ts';
export { mountTmpfs } from './tmpfs.ts';
export { builtProgram } from './built-program.ts';
