/**
 * The command line, taken off the process. To be imported first: loading `roaring` runs node-pre-gyp, which reads
 * `--directory` as its own.
 */

export const ARGUMENTS: readonly string[] = process.argv.splice(2);
