export { checksum, CHECKSUM_BYTES, digest, DIGEST_BYTES, digestOf } from './digest.ts';
export {
  type LmdbDatabaseView,
  type LmdbEntry,
  LmdbError,
  type LmdbErrorDetails,
  type LmdbFile,
  type LmdbOptions,
  type LmdbRange,
  openLmdb,
} from './lmdb.ts';
export { checkLmdbFile, type LmdbFileOptions } from './lmdb-file.ts';
export { readStateFile, writeStateFile } from './state-file.ts';
