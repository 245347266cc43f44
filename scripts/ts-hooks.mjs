/**
 * Lets Node run the TypeScript of this project, unbuilt: `node --import ./scripts/ts-hooks.mjs <file.ts>`.
 *
 * Types are stripped by esbuild, file by file, and what comes out is kept in `.cache/ts`: the loader that tap brings does
 * it anew in each of several hundred processes. Where that one is to be loaded as well, it is told that it is not needed.
 */
import { register } from 'node:module';

process.env.TAP_TYPE_STRIP_ONLY = '1';
register('./ts-loader.mjs', import.meta.url);
